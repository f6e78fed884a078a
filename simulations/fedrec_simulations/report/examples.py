"""Lists for users of a finished run, each made on the node that hosts the user, from local state only.

A user's node knows the user's history and local state; the model is what everyone receives. The list is made of the
recommender's scores by the pipeline that makes lists on devices. Out of scope: whole tables of rankings
(`cli.rankings`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrec.core.errors import DataError
from fedrec.core.interactions import Catalog, UserBatch
from fedrec.core.recommender import Scores
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.items import Items
from fedrec.ranking.model import History, Scored, User
from fedrec.ranking.pipeline import Ranked, RecommendationRequest, rank
from fedrec.recommenders.registry import build
from fedrec_simulations.experiments.finished_run import FinishedRun, Host

#: Places of the example users in the order of history lengths.
QUANTILES = (0.25, 0.5, 0.9)
#: Users whose lists are made at once.
CHUNK_USERS = 256


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


def recommend(run: FinishedRun, user: str, n: int, latest: int = 5) -> Example:
    """The list of one user, in the data set's own ids.

    Raises:
        DataError: the user does not take part in the run.
        RunError: the run is not finished.
    """
    return next(lists(run, [user], n, latest))


def lists(run: FinishedRun, users: Sequence[str] | None, n: int, latest: int = 5) -> Iterator[Example]:
    """Lists of several users, node by node.

    Args:
        run: finished.
        users: ids in the data set; None: all users.
        n: list length.
        latest: how many of the latest items of the history are named.

    Raises:
        DataError: a user who does not take part in the run, or a list length below 1.
        RunError: the run is not finished.
    """
    missing = None if users is None else dict.fromkeys(users)
    some: list[str] = []
    for host in run.hosts():
        ids = host.shard.train.user_ids
        wanted = np.arange(len(ids)) if missing is None else np.flatnonzero(np.isin(ids, list(missing)))
        if len(wanted):
            yield from _of_node(run, host, wanted, RecommendationRequest(n=n), latest)
        if missing is not None:
            missing = {user: None for user in missing if user not in ids[wanted]}
        some += ids[:3].tolist()
        if missing is not None and not missing:
            return
    if missing:
        raise DataError(
            f"user {next(iter(missing))!r} does not take part in the run: expected one of its users, for example "
            f"{', '.join(some[:3])}"
        )


def typical_users(run: FinishedRun) -> list[str]:
    """A few users with short, middling and long histories; always the same ones."""
    history = run.split.history("refit")
    order = np.argsort(history.counts, kind="stable")
    order = order[history.counts[order] > 0]
    picks = dict.fromkeys(int(order[int(q * (len(order) - 1))]) for q in QUANTILES) if len(order) else {}
    return [str(history.user_ids[user]) for user in picks]


def _of_node(
    run: FinishedRun,
    host: Host,
    users: np.ndarray[Any, np.dtype[np.int64]],
    request: RecommendationRequest,
    latest: int,
) -> Iterator[Example]:
    """The lists of users whom one node hosts."""
    shard, shared, catalog = host.shard, run.model, run.catalog
    recommender = build(run.config.model)
    state = host.node.local_state(shared, "refit", int(run.result["rounds"]))
    history = shard.batch(shard.history("refit"))
    items = Items.of(catalog.item_ids.tolist())
    for start in range(0, len(users), CHUNK_USERS):
        rows = users[start : start + CHUNK_USERS]
        batch = history.take(rows)
        scores = recommender.score(shared, {name: values[rows] for name, values in state.items()}, batch)
        for k, row in enumerate(rows.tolist()):
            mine = batch.take(np.array([k]))
            held_out = shard.test.history(row).tolist() if shard.test is not None else []
            yield _example(
                str(shard.train.user_ids[row]),
                host.name,
                mine,
                _ranked(scores[k], mine, items, request),
                held_out,
                catalog,
                latest,
            )


def _ranked(scores: Scores, mine: UserBatch, items: Items, request: RecommendationRequest) -> Ranked:
    """One user's list; the weights of the history are in the scores already."""
    user = User(History(mine.item, np.ones(len(mine.item), dtype=np.float32)))
    return rank(ItemIndex(Scored(scores), items), user, mine.item, request, rng=np.random.default_rng(0))


def _example(
    user: str,
    node: str,
    mine: UserBatch,
    ranked: Ranked,
    held_out: list[int],
    catalog: Catalog,
    latest: int,
) -> Example:
    def line(item: int) -> Line:
        return Line(str(catalog.item_ids[item]), catalog.label(item))

    recommended = [
        Line(str(catalog.item_ids[item]), catalog.label(item), score, item in held_out)
        for item, score in zip(ranked.items, ranked.scores, strict=True)
    ]
    seen = mine.item[::-1][:latest].tolist()
    return Example(
        user,
        node,
        len(mine.item),
        [line(item) for item in seen],
        recommended,
        [line(item) for item in held_out],
    )
