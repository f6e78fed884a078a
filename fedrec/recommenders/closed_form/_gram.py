"""What item-item models have in common: one statistic, the Gram matrix G = Σ_u x_u x_uᵀ of the users' profiles.

Each user sends x_u x_uᵀ (upper triangle) once; the server turns the sum into a model. Because the sum is all that the
centralised fit needs too, federated and centralised model are the same. Final classes: EASE, item-kNN.

Letters: U users, I items, N interactions of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.updates import BlockSpec, Gram, Layout, State, Updates, UpdateSum
from fedrec.recommenders.profiles import matrix, merged, profile, recency

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class GramConfig(RecommenderConfig):
    """How histories become profiles.

    Attributes:
        activity_exponent: p, profiles are scaled by n^(-p) in training.
        training_half_life: recency in training, in interactions; None: none.
        scoring_half_life: recency when scoring; None: none.
    """

    activity_exponent: float = Field(default=0.0, ge=0, le=1)
    training_half_life: float | None = Field(default=None, gt=0)
    scoring_half_life: float | None = Field(default=None, gt=0)


class GramRecommender(Recommender):
    """A recommender that is a function of the Gram matrix; subclasses give `solve` and `score`."""

    fixed_rounds: ClassVar[int | None] = 1
    clusterable: ClassVar[bool] = True

    def __init__(self, config: GramConfig) -> None:
        self._profiles = config

    @abstractmethod
    def solve(self, gram: NDArray[np.float64]) -> State:
        """Shared state of a Gram matrix [I, I]."""

    def layout(self, n_items: int, round_: int = 1) -> Layout:
        return Layout({"gram": BlockSpec((n_items, n_items), symmetric=True)})

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:
        return np.zeros(0, dtype=np.int64)

    def compute_updates(
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        return Updates({"gram": Gram(*merged(batch, self._profile(batch)))}, len(batch)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        return self.solve(total.blocks["gram"]), server

    def fit(
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        batch = train.batch(np.arange(train.n_users))
        x = matrix(batch, self._profile(batch), train.n_items)
        return self.solve((x.T @ x).toarray()), {}

    def asked(self, batch: UserBatch, n_items: int) -> csr_array:
        """[U, I] float32 profiles with which a model is asked for scores."""
        return matrix(batch, recency(batch, self._profiles.scoring_half_life), n_items).astype(np.float32)

    def _profile(self, batch: UserBatch) -> NDArray[np.float64]:
        return profile(batch, self._profiles.training_half_life, self._profiles.activity_exponent)
