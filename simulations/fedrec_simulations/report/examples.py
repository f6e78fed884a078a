"""Example lists for a few users, made on the node that hosts them, from local state only.

A user's node knows the user's history and local state; the model is what everyone receives. Out of scope:
whole tables of rankings (`cli.rankings`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrec.core.errors import DataError
from fedrec.data.shards import load_shard
from fedrec.data.split import Split
from fedrec.ranking.top_n import top_n
from fedrec.recommenders.registry import build
from fedrec_client.node.node_folder import open_node
from fedrec_simulations.experiments.run_folder import RunFolder

#: Where in the order of history lengths the example users stand.
QUANTILES = (0.25, 0.5, 0.9)


@dataclass(frozen=True)
class Line:
    """One item of a list; `held_out`: the user really chose it, and training never saw that."""

    item: str
    title: str
    score: float | None = None
    held_out: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        rest = {} if self.score is None else {"score": self.score, "held_out": self.held_out}
        return {"item": self.item, "title": self.title} | rest


@dataclass(frozen=True)
class Example:
    """What a user had last (newest first) and is recommended (best first)."""

    user: str
    node: str
    interactions: int
    latest: list[Line]
    recommended: list[Line]
    held_out: list[Line]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "user": self.user,
            "node": self.node,
            "interactions": self.interactions,
            "latest": [line.as_dict() for line in self.latest],
            "recommendations": [
                {"rank": k} | line.as_dict() for k, line in enumerate(self.recommended, start=1)
            ],
            "held_out": [line.as_dict() for line in self.held_out],
        }


def recommend(run: RunFolder, user: str, n: int, latest: int = 5) -> Example:
    """The list of one user, in the data set's own ids.

    Raises:
        DataError: no one of that id takes part in the run.
        RunError: the run is not finished.
    """
    rounds = int(run.result["rounds"])
    some: list[str] = []
    for folder in run.node_folders():
        shard = load_shard(folder / "shard.npz")
        where = np.flatnonzero(shard.train.user_ids == user)
        if len(where):
            state = open_node(folder).local_state(run.model, "refit", rounds)
            return _example(run, folder.name, shard, state, int(where[0]), n, latest)
        some += shard.train.user_ids[:3].tolist()
    raise DataError(
        f"user {user!r} takes no part in run {run.path}: give one of its users, for example {', '.join(some[:3])}"
    )


def typical_users(run: RunFolder) -> list[str]:
    """A few users with short, middling and long histories; always the same ones."""
    history = run.split.history("refit")
    order = np.argsort(history.counts, kind="stable")
    order = order[history.counts[order] > 0]
    picks = dict.fromkeys(int(order[int(q * (len(order) - 1))]) for q in QUANTILES) if len(order) else {}
    return [str(history.user_ids[user]) for user in picks]


def _example(
    run: RunFolder, node: str, shard: Split, state: dict[str, Any], user: int, n: int, latest: int
) -> Example:
    catalog, history = run.catalog, shard.history("refit")
    mine = shard.batch(history).take(np.array([user]))
    local = {name: values[[user]] for name, values in state.items()}
    items, scores = top_n(build(run.config.model).score(run.model, local, mine), n, mine)
    held_out = shard.test.history(user).tolist() if shard.test is not None else []
    ids = shard.train.item_ids

    def line(item: int) -> Line:
        return Line(str(ids[item]), catalog.label(item))

    recommended = [
        Line(str(ids[item]), catalog.label(item), float(score), item in held_out)
        for item, score in zip(items[0].tolist(), scores[0].tolist(), strict=True)
        if item >= 0
    ]
    seen = mine.item[::-1][:latest].tolist()
    return Example(
        str(shard.train.user_ids[user]),
        node,
        len(mine.item),
        [line(item) for item in seen],
        recommended,
        [line(item) for item in held_out],
    )
