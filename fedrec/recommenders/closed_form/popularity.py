"""Most popular: the baseline that every personalised recommender must beat.

A user's update is a 0/1 vector over the items; the sum is the popularity. One round. Counting only each user's newest
items makes it the popularity of today, and where long histories are scaled down to hide a user (`fedrec.privacy`) it
keeps the scaling gentle.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from fedrec.core.contributions import distinct, newest
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.updates import BlockSpec, Layout, Rows, State, Updates, UpdateSum
from fedrec.ranking.popular import Popular
from fedrec.recommenders.registry import recommender


class PopularityConfig(RecommenderConfig):
    """Configuration of the popularity.

    Attributes:
        max_items: how many of a user's newest items count; None: all.
    """

    kind: str = "popularity"
    max_items: int | None = Field(default=None, ge=1)


@recommender(PopularityConfig)
class Popularity(Recommender):
    """Scores every item by how many users have it (among their newest items)."""

    config: PopularityConfig
    fixed_rounds: ClassVar[int | None] = 1

    def __init__(self, config: PopularityConfig) -> None:
        self.config = config

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        return Layout({"count": BlockSpec((n_items,))})

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:  # noqa: D102
        return np.zeros(0, dtype=np.int64)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        own = newest(distinct(batch), self.config.max_items)
        return Updates({"count": Rows(own.indptr, own.item, np.ones(len(own.item)))}, len(batch)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        return {"count": total.blocks["count"].astype(np.float32)}, server

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        return np.broadcast_to(shared["count"], (len(batch), len(shared["count"]))).astype(np.float32)

    def serving(self, shared: State) -> Popular:  # noqa: D102
        return Popular(shared["count"])
