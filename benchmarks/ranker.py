"""Rankers: probabilities of clicks and of ratings, federated, beside the baseline and simple peers.

    python -m benchmarks.ranker [--data FOLDER] [--sets movietweetings,ml-100k] [--targets click,rating]

The latest tenth of everyone's interactions is the test part, the tenth before it chooses the number of rounds by log
loss. A click is evaluated against four sampled items that the user does not have; a rating by its share of the full
rating, a like is one from 0.75 on. Peers: the mean of everything; smoothed means of items; a ridge model of user
and item (Koren 2009) for ratings; logistic regression on the same fields as DeepFM's and the agreement of profile and
item, whose ridge the validation part chooses. `--data` is a folder with the original files of MovieLens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.ranker_peers import NEGATIVES, RIDGES, Floats, Questions, logistic, means
from fedrec.core.interactions import FloatArray, Interactions
from fedrec.core.randomness import Purpose, key, uniform, user_keys
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.evaluation._ranking_metrics import Scaling, newton_sums, rescale
from fedrec.recommenders.ctr.deepfm import DeepFm
from fedrec.recommenders.registry import build
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder

SETS = {
    "movietweetings": {"name": "movietweetings", "rating_range": [0, 10], "core": 5},
    "ml-100k": {"name": "ml-100k", "rating_range": [1, 5]},
}
ROUNDS = (150, 300, 600)
RATE = 0.07


def questions(
    known: Interactions, target: Interactions, share: Callable[[FloatArray], FloatArray], click: bool
) -> Questions:
    """Of the held-out interactions, after what was known."""
    history = known.batch(np.arange(known.n_users))
    if not click:
        return Questions(
            history,
            target.user,
            target.timestamp,
            target.item[:, None],
            share(target.value)[:, None].astype(float),
        )
    seen = {
        (u, i)
        for part in (known, target)
        for u, i in zip(part.user.tolist(), part.item.tolist(), strict=True)
    }
    draws = uniform(user_keys(key(0, Purpose.CANDIDATE), np.arange(len(target))), 40)
    pool = (draws * known.n_items).astype(np.int64)
    items = np.empty((len(target), 1 + NEGATIVES), dtype=np.int64)
    for k, (user, item) in enumerate(zip(target.user.tolist(), target.item.tolist(), strict=True)):
        fresh = [other for other in pool[k].tolist() if (user, other) not in seen]
        items[k] = [item, *fresh[:NEGATIVES]]
    outcome = np.zeros(items.shape)
    outcome[:, 0] = 1
    return Questions(history, target.user, target.timestamp, items, outcome)


def ask(model: DeepFm, shared: State, asked: Questions) -> Floats:
    """Probabilities of a model, a few hundred questions at once."""
    pieces = []
    for start in range(0, len(asked.rows), 256):
        some = slice(start, start + 256)
        batch = asked.history.take(asked.rows[some])
        pieces.append(model.predict(shared, batch, asked.items[some], asked.time[some]))
    return np.concatenate(pieces).astype(float)


def deepfm_config(data: dict[str, object], target: str, features: int, rounds: int) -> Config:
    """One run."""
    return parse_config(
        {
            "name": "ranker",
            "data": data | {"ratings": True, "features": {"parts": ["categories"]}},
            "split": {"method": "per_user_ratio", "fraction": 0.1},
            "model": {
                "kind": "deepfm",
                "target": target,
                "rating_range": data["rating_range"],
                "features": features,
                "context": True,
                "weight_decay": 0.5 if target == "rating" else 0.0,
            },
            "federation": {
                "sampling_rate": RATE,
                "rounds": rounds,
                "clip_norm": 3.0,
                "checkpoint_every": 10**6,
            },
            "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
        },
        (),
    )


def federated(config: Config, prepared: Prepared, part: Interactions) -> State:
    """The model after the rounds of a configuration on a part."""
    bare = replace(prepared, split=Split(part, None, prepared.split.test))
    with tempfile.TemporaryDirectory(prefix="fedrec-ranker-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, bare, 1, share_split=False)
        return run_in_process(folder.path).shared


def calibrated(probability: Floats, asked: Questions, evaluated: Floats) -> Floats:
    """`evaluated` after the two numbers that devices find together on what they know: federated Platt scaling."""
    flat, outcome = probability.reshape(-1), asked.outcome.reshape(-1)
    owner = np.repeat(asked.rows, asked.items.shape[1])
    devices = [owner == row for row in np.unique(owner)]

    def sums(scaling: Scaling) -> tuple[Floats, Floats]:
        parts = [newton_sums(scaling, flat[mine], outcome[mine]) for mine in devices]
        return np.sum([g for g, _ in parts], axis=0), np.sum([h for _, h in parts], axis=0)

    return rescale(sums)(evaluated.reshape(-1)).reshape(evaluated.shape)


def peers(
    split: Split,
    features: FloatArray,
    share: Callable[[FloatArray], FloatArray] | None,
    valid: Questions,
    asked: Questions,
) -> dict[str, Floats]:
    """What the peers answer, by name; without `share` to clicks."""

    def shares(part: Interactions) -> FloatArray | None:
        return None if share is None else share(part.value)

    def regression(part: Interactions, ridge: float, asked: Questions) -> Floats:
        return logistic(part, features, shares(part), ridge, asked)

    def loss(ridge: float) -> float:
        return valid.evaluate(regression(split.train, ridge, valid))["log_loss"]

    everything = split.learnable("refit")
    found = {"logistic regression": regression(everything, min(RIDGES, key=loss), asked)}
    return found | means(everything, shares(everything), asked)


def compare(name: str, target: str, data: dict[str, object]) -> str:
    """The table of one set and one target."""
    click = target == "click"
    probe = prepare(deepfm_config(data, target, 0, 1))
    assert (
        probe.catalog.features is not None
        and probe.split.validation is not None
        and probe.split.test is not None
    )
    features, split = probe.catalog.features, probe.split
    config = deepfm_config(data, target, features.shape[1], 1)
    model = build(config.model)
    assert isinstance(model, DeepFm)
    valid = questions(split.train, split.validation, model.share, click)
    everything = split.learnable("refit")
    asked = questions(everything, split.test, model.share, click)

    def run(part: Interactions, rounds: int) -> State:
        return federated(deepfm_config(data, target, features.shape[1], rounds), probe, part)

    def baseline(part: Interactions, rounds: int) -> State:
        return model.fit(part, 0, max(1, round(rounds * RATE)), features)[0]

    rows: dict[str, tuple[dict[str, float], str]] = {}
    for label, fit in (("DeepFM, federated", run), ("DeepFM, centralised baseline", baseline)):
        started = time.process_time()
        early = {rounds: ask(model, fit(split.train, rounds), valid) for rounds in ROUNDS}
        chosen = min(early, key=lambda rounds: valid.evaluate(early[rounds])["log_loss"])
        answers = ask(model, fit(everything, chosen), asked)
        spent = f"{chosen} rounds, {time.process_time() - started:.0f} s"
        rows[label] = (asked.evaluate(answers), spent)
        if fit is run:
            rows["the same, calibrated"] = (asked.evaluate(calibrated(early[chosen], valid, answers)), "")
    share = None if click else model.share
    rows |= {
        label: (asked.evaluate(p), "") for label, p in peers(split, features, share, valid, asked).items()
    }
    lines = [
        f"### {name}, {target} ({len(asked.rows):,} questions)\n",
        "| ranker | AUC | AUC within a user | log loss | RMSE | calibration error | |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, (found, spent) in rows.items():
        figures = [f"{found[each]:.4f}" for each in ("auc", "auc_within", "log_loss", "rmse", "calibration")]
        lines.append(f"| {label} | {' | '.join(figures)} | {spent} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Federated rankers beside their peers")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="movietweetings,ml-100k")
    parser.add_argument("--targets", default="click,rating")
    options = parser.parse_args()
    for name in options.sets.split(","):
        data: dict[str, object] = dict(SETS[name])
        if name != "movietweetings":
            if options.data is None:
                continue
            data["path"] = str(options.data.resolve() / name)
        for target in options.targets.split(","):
            print(compare(name, target, data) + "\n", flush=True)


if __name__ == "__main__":
    main()
