"""What a perfect secure sum still tells: items of a cohort that one user alone has touched.

    python -m benchmarks.sum_leakage [--data FOLDER]

For cohorts of users drawn at random: how many rows of the item table their histories touch, which part of those is
touched by one user alone, and how many are touched by five or more. Then the attack on matrix factorisation: in the
exact sum of one round's updates, rows that one user alone has moved lie in the direction of that user's private
vector, so pairs of rows of the same user show by their cosine. Precision and recall of "same user", and what is left
of them when the sum carries the noise of epsilon 8 over 20 rounds for a cohort of that size out of everyone.
FOLDER may hold ml-1m and ml-100k; without it the bundled MovieTweetings are used alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.recommender import RoundSeed
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig
from fedrec.rounds.chain import train_users
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.experiments.prepare import prepare

COHORTS = (20, 100, 500)
CLIP, COSINE, ROUNDS = 1.0, 0.98, 20
MODEL = MatrixFactorisation(MfConfig(embedding_size=32, learning_rate=0.1))
REPEATS = 5


def interactions(name: str, path: Path | None) -> Any:
    """The training part of a data set."""
    data: dict[str, Any] = {"name": name} | ({"path": str(path)} if path else {})
    config = parse_config(
        {
            "data": data,
            "split": {"validation": False},
            "model": {"kind": "popularity"},
            "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
        }
    )
    return prepare(config).split.train


def pairs_found(rows: NDArray[np.float64], owner: NDArray[np.int64]) -> tuple[float, float, float]:
    """Precision, recall of pairs of rows by their cosine, and the precision of guessing."""
    if len(rows) < 2:
        return float("nan"), float("nan"), float("nan")
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    upper = np.triu_indices(len(rows), 1)
    said = (np.abs(unit @ unit.T) > COSINE)[upper]
    same = (owner[:, None] == owner)[upper]
    right = float((said & same).sum())
    return right / max(said.sum(), 1), right / max(same.sum(), 1), float(same.mean())


def measure(train: Any, size: int, rng: np.random.Generator) -> list[float]:
    """One cohort's line."""
    users = np.sort(rng.choice(train.n_users, size=min(size, train.n_users), replace=False))
    batch = train.batch(np.arange(train.n_users)).take(users)
    touched = np.zeros(train.n_items, dtype=np.int64)
    for u in range(len(batch)):
        touched[np.unique(batch.item[batch.indptr[u] : batch.indptr[u + 1]])] += 1
    rows = np.flatnonzero(touched)

    key = RoundSeed(0, 1)
    shared, local = MODEL.init_shared(train.n_items, 0), MODEL.init_local(batch.user, 0)
    total, _ = train_users(MODEL, shared, local, batch, key, CLIP, train.n_items)
    moved_by = np.zeros(train.n_items, dtype=np.int64)
    owner = np.full(train.n_items, -1, dtype=np.int64)
    for u in range(len(batch)):
        mine = MODEL.touched_rows(batch.take(np.array([u])), key, train.n_items)
        moved_by[mine] += 1
        owner[mine] = u
    alone = np.flatnonzero(moved_by == 1)[:1500]
    clean = pairs_found(total.blocks["item_table"][alone], owner[alone])

    settings = PrivacySettings(unit="user", trust="distributed", epsilon=8.0, clip_norm=CLIP, force=True)
    plan = make_plan(
        settings,
        population=train.n_users,
        rounds=ROUNDS,
        schedule=(1.0,) * ROUNDS,
        parameters=MODEL.layout(train.n_items).size,
        sampling_rate=min(1.0, size / train.n_users),
    )
    noised = total.blocks["item_table"][alone] + rng.normal(
        0, plan.noise_std(1), size=(len(alone), MODEL.config.embedding_size)
    )
    noisy = pairs_found(noised, owner[alone])
    return [
        len(rows),
        float((touched[rows] == 1).mean()),
        int((touched >= 5).sum()),
        len(alone),
        *clean,
        *noisy[:2],
    ]


def nanmean(rows: list[list[float]]) -> list[float]:
    """Means by column over the cohorts in which there was something to measure."""
    columns = ([value for value in column if not np.isnan(value)] for column in zip(*rows, strict=True))
    return [float(np.mean(column)) if column else float("nan") for column in columns]


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    folder = parser.parse_args().data
    sets: list[tuple[str, Path | None]] = [("movietweetings", None)]
    if folder is not None:
        sets += [(name, folder / name) for name in ("ml-100k", "ml-1m") if (folder / name).exists()]
    print(f"means of {REPEATS} cohorts; pairs: rows moved by one user alone, |cosine| > {COSINE}\n")
    print("data set (users x items)          cohort  touched  by one alone  by >= 5 | moved by one  precision  "
          "recall  (guess) | with noise: precision  recall")  # fmt: skip
    for name, path in sets:
        train = interactions(name, path)
        for size in COHORTS:
            rng = np.random.default_rng(size)
            mean = nanmean([measure(train, size, rng) for _ in range(REPEATS)])
            label = f"{name} ({train.n_users:,} x {train.n_items:,})"
            print(
                f"{label:33} {size:6}  {mean[0]:7,.0f}  {mean[1]:12.0%}  {mean[2]:7,.0f} | {mean[3]:12,.0f}  "
                f"{mean[4]:9.1%}  {mean[5]:6.1%}  {mean[6]:7.1%} | {mean[7]:21.1%}  {mean[8]:6.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
