"""Item-kNN: cosine similarity between items from a sum of co-occurrences, the k nearest kept.

Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms" (TOIS): with G = Σ_u x_u x_uᵀ the
similarity of i and j is G_ij / (sqrt(G_ii G_jj) + shrinkage); a user's score of j sums the similarities of j's
neighbours among the user's items. One round.

Letters: U users, I items, k neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Scores
from fedrec.core.updates import State
from fedrec.ranking.item_item import ItemItem
from fedrec.recommenders.closed_form._gram import GramConfig, GramRecommender
from fedrec.recommenders.profiles import neighbour_matrix
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import neighbour_weights


class ItemKnnConfig(GramConfig):
    """Configuration of item-kNN; see `GramConfig` for the profiles.

    Attributes:
        neighbours: k, similarities kept for each item.
        shrinkage: added to the denominator, in units of co-occurrences; lowers similarities that few users back.
    """

    kind: str = "item_knn"
    neighbours: int = Field(default=100, ge=1)
    shrinkage: float = Field(default=10.0, ge=0)


@recommender(ItemKnnConfig)
class ItemKnn(GramRecommender):
    """Cosine neighbours from a sum of outer products."""

    config: ItemKnnConfig
    small: ClassVar[Mapping[str, Any]] = {"neighbours": 6}

    def __init__(self, config: ItemKnnConfig) -> None:
        super().__init__(config)
        self.config = config

    def solve(self, gram: NDArray[np.float64]) -> State:
        """neighbour [I, k] and similarity [I, k]: row j holds the items whose presence speaks for j."""
        # A sum to which noise was added may say that someone owns less than nothing.
        norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
        cosine = gram / (np.outer(norm, norm) + self.config.shrinkage + np.finfo(np.float64).tiny)
        np.fill_diagonal(cosine, 0.0)
        k = min(self.config.neighbours, max(len(cosine) - 1, 1))
        nearest = np.sort(np.argsort(-cosine, axis=1, kind="stable")[:, :k], axis=1)
        return {
            "neighbour": nearest.astype(np.int32),
            "similarity": np.take_along_axis(cosine, nearest, axis=1).astype(np.float32),
        }

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        edges = neighbour_matrix(shared["neighbour"], shared["similarity"])
        return np.asarray((self.asked(batch, len(shared["neighbour"])) @ edges.T).toarray(), dtype=np.float32)

    def serving(self, shared: State) -> ItemItem:  # noqa: D102
        weights = neighbour_weights(shared["neighbour"], shared["similarity"])
        return ItemItem(weights, self.config.scoring_half_life)
