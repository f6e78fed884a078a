"""Rankers: probabilities of clicks and of ratings, federated, beside the twin and simple peers.

    python -m benchmarks.ranker [--data FOLDER] [--sets movietweetings,ml-100k] [--targets click,rating]

The latest tenth of everybody's interactions is the test part, the tenth before it chooses the number of rounds by log
loss. A click is judged against four sampled items that the person does not have; a rating by its share of the full
rating, a like is one from 0.75 on. Peers: the mean of everything; smoothed means of items; a ridge model of person
and item (Koren 2009) for ratings; logistic regression on item, public features, activity, hour, day and the
agreement of profile and item. `--data` is a folder with the original files of MovieLens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.data.interactions import Interactions, UserBatch
from fedrec.data.split import Split
from fedrec.evaluation.ranking_metrics import RankerSums, Scaling, newton_sums, rescale
from fedrec.learning.keys import Purpose, key, uniform, user_keys
from fedrec.learning.updates import State
from fedrec.models.deepfm import ACTIVITY, DeepFm
from fedrec.models.registry import build
from fedrec_simulations.config import Config, parse_config
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.prepare import Prepared, prepare
from fedrec_simulations.run_folder import RunFolder

Floats = NDArray[np.float64]
SETS = {
    "movietweetings": {"name": "movietweetings", "rating_range": [0, 10], "core": 5},
    "ml-100k": {"name": "ml-100k", "rating_range": [1, 5]},
}
ROUNDS = (150, 300, 600)
RATE = 0.07
NEGATIVES = 4
LIKE = 0.75


@dataclass(frozen=True)
class Questions:
    """What rankers are asked: W items of a person at a moment, and what happened.

    Attributes:
        history: of everybody.
        rows: [N] row of the person in the history.
        time: [N].
        items: [N, W].
        outcome: [N, W] 0 to 1.
    """

    history: UserBatch
    rows: NDArray[np.int64]
    time: NDArray[np.int64]
    items: NDArray[np.int64]
    outcome: Floats

    def judge(self, probability: Floats) -> dict[str, float]:
        """Figures of probabilities [N, W]; the areas ask for likes."""
        person = np.repeat(self.rows, self.items.shape[1])
        p, y = np.clip(probability.reshape(-1), 0, 1), self.outcome.reshape(-1)
        exact = RankerSums.of(p, y, person).report()
        likes = RankerSums.of(p, (y >= LIKE).astype(float), person).report()
        return exact | {name: likes[name] for name in ("auc", "auc_within")}


def questions(
    known: Interactions, target: Interactions, share: Callable[..., NDArray[np.float32]], click: bool
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


def logistic(
    known: Interactions,
    share: Callable[..., NDArray[np.float32]],
    click: bool,
    features: NDArray[np.float32],
    asked: Questions,
) -> Floats:
    """Peer: logistic regression with the same fields, first order, and the match of profile and item."""
    n_users = known.n_users
    sums = np.zeros((n_users, features.shape[1]))
    np.add.at(sums, known.user, features[known.item])
    counts = np.bincount(known.user, minlength=n_users)

    def describe(
        user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64], own: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of the ones, and the dense columns."""
        left = sums[user] - (features[item] if own else 0)
        before = np.maximum(counts[user] - own, 1)
        active = np.minimum(np.log2(before + 1).astype(np.int64), ACTIVITY - 1)
        ones = [item, active, time // 3600 % 24, (time // 86_400 + 3) % 7]
        starts = np.cumsum([0, known.n_items, ACTIVITY, 24])
        places = np.stack([one + start for one, start in zip(ones, starts, strict=True)], axis=1)
        dense = np.concatenate([features[item], features[item] * left / before[:, None]], axis=1)
        return torch.from_numpy(places), torch.from_numpy(dense.astype(np.float32))

    user, item, stamp, y = known.user, known.item, known.timestamp, share(known.value).astype(float)
    mine = np.ones(len(user), dtype=bool)
    if click:
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, known.n_items, NEGATIVES * len(user))
        user, stamp = np.tile(user, 1 + NEGATIVES), np.tile(stamp, 1 + NEGATIVES)
        item = np.concatenate([known.item, drawn])
        y = np.concatenate([np.ones(len(known)), np.zeros(len(drawn))])
        mine = np.arange(len(user)) < len(known)
    places, dense = describe(user, item, stamp, own=False)
    own_places, own_dense = describe(user[mine], item[mine], stamp[mine], own=True)
    places[mine], dense[mine] = own_places, own_dense
    weight = torch.zeros(known.n_items + ACTIVITY + 31, requires_grad=True)
    slope, bias = torch.zeros(dense.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, slope, bias], max_iter=60, line_search_fn="strong_wolfe")
    goal = torch.from_numpy(y.astype(np.float32))

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = weight[places].sum(1) + dense @ slope + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, goal)
        loss = loss + 2.0 / len(goal) * (weight.square().sum() + slope.square().sum())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    width = asked.items.shape[1]
    places, dense = describe(
        np.repeat(asked.rows, width), asked.items.reshape(-1), np.repeat(asked.time, width), own=False
    )
    with torch.no_grad():
        found = (weight[places].sum(1) + dense @ slope + bias).sigmoid()
    return found.numpy().astype(float).reshape(asked.items.shape)


def means(
    known: Interactions, share: Callable[..., NDArray[np.float32]], click: bool, asked: Questions
) -> dict[str, Floats]:
    """Peers that need no training."""
    count = known.item_counts.astype(float)
    if click:
        negative = NEGATIVES * len(known) / known.n_items
        return {
            "base rate": np.full(asked.items.shape, 1 / (1 + NEGATIVES)),
            "popularity": ((count + 1) / (count + 1 + negative))[asked.items],
        }
    y = share(known.value).astype(float)
    mean = y.mean()
    item_part, user_part = np.zeros(known.n_items), np.zeros(known.n_users)
    for _ in range(20):
        rest = y - mean - user_part[known.user]
        item_part = np.bincount(known.item, rest, known.n_items) / (count + 5)
        rest = y - mean - item_part[known.item]
        user_part = np.bincount(known.user, rest, known.n_users) / (known.counts + 10)
    alone = np.bincount(known.item, y - mean, known.n_items) / (count + 5)
    both = mean + item_part[asked.items] + user_part[asked.rows][:, None]
    return {
        "mean": np.full(asked.items.shape, mean),
        "item mean": mean + alone[asked.items],
        "person and item": both,
    }


def calibrated(probability: Floats, asked: Questions, judged: Floats) -> Floats:
    """`judged` after the two numbers that devices find together on what they know: federated Platt scaling."""
    flat, outcome = probability.reshape(-1), asked.outcome.reshape(-1)
    owner = np.repeat(asked.rows, asked.items.shape[1])
    devices = [owner == row for row in np.unique(owner)]

    def sums(scaling: Scaling) -> tuple[Floats, Floats]:
        parts = [newton_sums(scaling, flat[mine], outcome[mine]) for mine in devices]
        return np.sum([g for g, _ in parts], axis=0), np.sum([h for _, h in parts], axis=0)

    return rescale(sums)(judged.reshape(-1)).reshape(judged.shape)


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
    everything = split.learnable("final")
    asked = questions(everything, split.test, model.share, click)

    def run(part: Interactions, rounds: int) -> State:
        return federated(deepfm_config(data, target, features.shape[1], rounds), probe, part)

    def twin(part: Interactions, rounds: int) -> State:
        return model.fit(part, 0, max(1, round(rounds * RATE)), features)[0]

    rows: dict[str, tuple[dict[str, float], str]] = {}
    for label, fit in (("DeepFM, federated", run), ("DeepFM, centralised twin", twin)):
        started = time.process_time()
        early = {rounds: ask(model, fit(split.train, rounds), valid) for rounds in ROUNDS}
        chosen = min(early, key=lambda rounds: valid.judge(early[rounds])["log_loss"])
        answers = ask(model, fit(everything, chosen), asked)
        spent = f"{chosen} rounds, {time.process_time() - started:.0f} s"
        rows[label] = (asked.judge(answers), spent)
        if fit is run:
            rows["the same, calibrated"] = (asked.judge(calibrated(early[chosen], valid, answers)), "")
    rows["logistic regression"] = (asked.judge(logistic(everything, model.share, click, features, asked)), "")
    rows |= {label: (asked.judge(p), "") for label, p in means(everything, model.share, click, asked).items()}
    lines = [
        f"### {name}, {target} ({len(asked.rows):,} questions)\n",
        "| ranker | AUC | AUC within a person | log loss | RMSE | calibration error | |",
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
