"""EASE: a linear item-item model in closed form, whose only statistic is a sum over users.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (WWW), equations 6-8: with the Gram matrix
G = Σ_u x_u x_uᵀ and P = (G + λ I)⁻¹ the weights are B_ij = -P_ij / P_jj, zero on the diagonal. One round.

Letters: U users, I items.
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
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import DenseWeights
from fedrec.recommenders.closed_form._gram import GramConfig, GramRecommender
from fedrec.recommenders.registry import recommender


class EaseConfig(GramConfig):
    """Configuration of EASE; see `GramConfig` for the profiles.

    Attributes:
        reg: λ, added to the diagonal of the Gram matrix.
    """

    kind: str = "ease"
    reg: float = Field(default=200.0, gt=0)


@recommender(EaseConfig)
class Ease(GramRecommender):
    """Closed-form item-item weights from a sum of outer products."""

    config: EaseConfig
    small: ClassVar[Mapping[str, Any]] = {"reg": 5.0}

    def __init__(self, config: EaseConfig) -> None:
        super().__init__(config)
        self.config = config

    def solve(self, gram: NDArray[np.float64]) -> State:
        """weights [I, I]; column j scores item j."""
        regularised = gram.copy()
        regularised[np.diag_indices_from(regularised)] += self.config.reg
        precision = np.linalg.inv(regularised)
        weights = precision / -np.diag(precision)
        np.fill_diagonal(weights, 0.0)
        return {"weights": weights.astype(np.float32)}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        weights = shared["weights"]
        return np.asarray(self.asked(batch, len(weights)) @ weights, dtype=np.float32)

    def serving(self, shared: State) -> ItemItem:  # noqa: D102
        return ItemItem(DenseWeights(FloatTable(shared["weights"])), self.config.scoring_half_life)
