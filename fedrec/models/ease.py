"""EASE: a linear item-item model in closed form, whose only statistic is a sum over users.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (WWW), equations 6-8: with the Gram matrix
G = Σ_u x_u x_uᵀ and P = (G + λ I)⁻¹ the weights are B_ij = -P_ij / P_jj, zero on the diagonal. Each user sends
x_u x_uᵀ (upper triangle); the federated model is the centralised one. One round.

Letters: U users, I items.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.data.interactions import IntArray, Interactions, UserBatch
from fedrec.learning.updates import BlockSpec, Gram, Layout, State, Updates, UpdateSum
from fedrec.models.base import Recommender, RecommenderConfig, RoundKey, Scores
from fedrec.models.profiles import matrix, profile, recency


class EaseConfig(RecommenderConfig):
    """Configuration of EASE.

    Attributes:
        reg: λ, added to the diagonal of the Gram matrix.
        activity_exponent: p, profiles are scaled by n^(-p) in training.
        training_half_life: recency in training, in interactions; None: none.
        scoring_half_life: recency when scoring; None: none.
    """

    kind: Literal["ease"] = "ease"
    reg: float = Field(default=200.0, gt=0)
    activity_exponent: float = Field(default=0.0, ge=0, le=1)
    training_half_life: float | None = Field(default=None, gt=0)
    scoring_half_life: float | None = Field(default=None, gt=0)


class Ease(Recommender):
    """Closed-form item-item weights from a sum of outer products."""

    kind: ClassVar[str] = "ease"
    one_round: ClassVar[bool] = True

    def __init__(self, config: EaseConfig) -> None:
        self.config = config

    def layout(self, n_items: int) -> Layout:  # noqa: D102
        return Layout({"gram": BlockSpec((n_items, n_items), symmetric=True)})

    def init_shared(self, n_items: int, seed: int) -> State:  # noqa: D102
        return {}

    def touched_rows(self, batch: UserBatch, key: RoundKey, n_items: int) -> IntArray:  # noqa: D102
        return np.zeros(0, dtype=np.int64)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundKey
    ) -> tuple[Updates, State]:
        return Updates({"gram": Gram(batch.indptr, batch.item, self._profile(batch))}, len(batch)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        return {"weights": solve(total.blocks["gram"], self.config.reg)}, server

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        return {}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        weights = shared["weights"]
        x = matrix(batch, recency(batch, self.config.scoring_half_life), len(weights)).astype(np.float32)
        return np.asarray(x @ weights, dtype=np.float32)

    def fit(self, train: Interactions, seed: int, rounds: int) -> tuple[State, State]:  # noqa: D102
        batch = train.batch(np.arange(train.n_users))
        x = matrix(batch, self._profile(batch), train.n_items)
        return {"weights": solve((x.T @ x).toarray(), self.config.reg)}, {}

    def _profile(self, batch: UserBatch) -> NDArray[np.float64]:
        return profile(batch, self.config.training_half_life, self.config.activity_exponent)


def solve(gram: NDArray[np.float64], reg: float) -> NDArray[np.float32]:
    """[I, I] weights of a Gram matrix; column j scores item j."""
    regularised = gram.copy()
    regularised[np.diag_indices_from(regularised)] += reg
    precision = np.linalg.inv(regularised)
    weights = precision / -np.diag(precision)
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32)
