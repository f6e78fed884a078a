"""Item-kNN: cosine similarity between items from a sum of co-occurrences, the k nearest kept.

Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms" (TOIS): with G = Σ_u x_u x_uᵀ the
similarity of i and j is G_ij / (sqrt(G_ii G_jj) + shrinkage); a user's score of j sums the similarities of j's
neighbours among the user's items. Each user sends x_u x_uᵀ (upper triangle). One round.

Letters: U users, I items, k neighbours.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_array

from fedrec.data.interactions import IntArray, Interactions, UserBatch
from fedrec.learning.updates import BlockSpec, Gram, Layout, State, Updates, UpdateSum
from fedrec.models.base import Recommender, RecommenderConfig, RoundKey, Scores
from fedrec.models.profiles import matrix, profile, recency


class ItemKnnConfig(RecommenderConfig):
    """Configuration of item-kNN.

    Attributes:
        neighbours: k, similarities kept for each item.
        shrinkage: added to the denominator, in units of co-occurrences; lowers similarities that few users back.
        activity_exponent: p, profiles are scaled by n^(-p) in training.
        training_half_life: recency in training, in interactions; None: none.
        scoring_half_life: recency when scoring; None: none.
    """

    kind: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(default=100, ge=1)
    shrinkage: float = Field(default=10.0, ge=0)
    activity_exponent: float = Field(default=0.0, ge=0, le=1)
    training_half_life: float | None = Field(default=None, gt=0)
    scoring_half_life: float | None = Field(default=None, gt=0)


class ItemKnn(Recommender):
    """Cosine neighbours from a sum of outer products."""

    kind: ClassVar[str] = "item_knn"
    one_round: ClassVar[bool] = True

    def __init__(self, config: ItemKnnConfig) -> None:
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
        return self._neighbourhoods(total.blocks["gram"]), server

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        return {}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        neighbour, similarity = shared["neighbour"], shared["similarity"]
        n_items, k = neighbour.shape
        pointers = np.arange(n_items + 1) * k
        edges = csr_array((similarity.reshape(-1), neighbour.reshape(-1), pointers), shape=(n_items, n_items))
        x = matrix(batch, recency(batch, self.config.scoring_half_life), n_items).astype(np.float32)
        return np.asarray((x @ edges.T).toarray(), dtype=np.float32)

    def fit(self, train: Interactions, seed: int, rounds: int) -> tuple[State, State]:  # noqa: D102
        batch = train.batch(np.arange(train.n_users))
        x = matrix(batch, self._profile(batch), train.n_items)
        return self._neighbourhoods((x.T @ x).toarray()), {}

    def _profile(self, batch: UserBatch) -> NDArray[np.float64]:
        return profile(batch, self.config.training_half_life, self.config.activity_exponent)

    def _neighbourhoods(self, gram: NDArray[np.float64]) -> State:
        """neighbour [I, k] and similarity [I, k]: row j holds the items whose presence speaks for j."""
        norm = np.sqrt(np.diag(gram))
        cosine = gram / (np.outer(norm, norm) + self.config.shrinkage + np.finfo(np.float64).tiny)
        np.fill_diagonal(cosine, 0.0)
        k = min(self.config.neighbours, max(len(cosine) - 1, 1))
        nearest = np.sort(np.argsort(-cosine, axis=1, kind="stable")[:, :k], axis=1)
        return {
            "neighbour": nearest.astype(np.int32),
            "similarity": np.take_along_axis(cosine, nearest, axis=1).astype(np.float32),
        }
