"""GMF: generalised matrix factorisation, a weighted dot product of a private user vector and an item's row.

The score is w · (p ∘ q) + b_i (He et al. 2017, "Neural collaborative filtering", WWW, equation 9). What the
three models share is in `_ncf`.

Letters: p user vector, q item vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fedrec.core.updates import State
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Newton
from fedrec.ranking.tables import FloatTable
from fedrec.recommenders.collaborative._ncf import Ncf, NcfConfig
from fedrec.recommenders.registry import recommender


class GmfConfig(NcfConfig):
    """Configuration of GMF; see `NcfConfig`; its layers are not used."""

    kind: str = "gmf"


@recommender(GmfConfig)
class Gmf(Ncf):
    """A weighted dot product."""

    forms: ClassVar[tuple[str, ...]] = ("gmf",)
    serves_exactly: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 4,
        "device": {"learning_rate": 0.3},
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def serving(self, shared: State) -> Factors:
        """Users are folded in by Newton steps instead of sampled gradient descent: deterministic and faster."""
        c = self.config
        pull = 1.0 / (c.device.rate(shared=False) * c.fold_in_epochs * c.local_epochs)
        newton = Newton("bce", c.negatives, c.reg, pull)
        # w · (p ∘ q) is p · (w ∘ q).
        weighted = FloatTable(shared["gmf/item"] * shared["gmf/weight"])
        return Factors(weighted, newton, shared["item_bias"].astype(np.float32))
