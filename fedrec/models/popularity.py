"""Most popular: the baseline that every personalised recommender must beat.

A user's update is a 0/1 vector over the items; the sum is the popularity. One round.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from fedrec.data.interactions import IntArray, Interactions, UserBatch
from fedrec.learning.updates import BlockSpec, Layout, Rows, State, Updates, UpdateSum
from fedrec.models.base import Recommender, RecommenderConfig, RoundKey, Scores


class PopularityConfig(RecommenderConfig):
    """There is nothing to choose."""

    kind: Literal["popularity"] = "popularity"


class Popularity(Recommender):
    """Scores every item by how many users have it."""

    kind: ClassVar[str] = "popularity"
    one_round: ClassVar[bool] = True

    def __init__(self, config: PopularityConfig) -> None:
        self.config = config

    def layout(self, n_items: int) -> Layout:  # noqa: D102
        return Layout({"count": BlockSpec((n_items,))})

    def init_shared(self, n_items: int, seed: int) -> State:  # noqa: D102
        return {}

    def touched_rows(self, batch: UserBatch, key: RoundKey, n_items: int) -> IntArray:  # noqa: D102
        return np.zeros(0, dtype=np.int64)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundKey
    ) -> tuple[Updates, State]:
        ones = np.ones(len(batch.item), dtype=np.float64)
        return Updates({"count": Rows(batch.indptr, batch.item, ones)}, len(batch)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        return {"count": total.blocks["count"].astype(np.float32)}, server

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        return {}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        return np.broadcast_to(shared["count"], (len(batch), len(shared["count"]))).astype(np.float32)

    def fit(self, train: Interactions, seed: int, rounds: int) -> tuple[State, State]:  # noqa: D102
        return {"count": train.item_counts.astype(np.float32)}, {}
