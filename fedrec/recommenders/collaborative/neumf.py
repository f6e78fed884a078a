"""NeuMF: GMF and MLP on vectors of their own, joined by one output layer.

He et al. 2017, "Neural collaborative filtering" (WWW), equation 12. What the three models share is in `_ncf`.

Letters: p user vector, q item vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedrec.recommenders.collaborative._ncf import Ncf, NcfConfig
from fedrec.recommenders.registry import recommender


class NeuMfConfig(NcfConfig):
    """Configuration of NeuMF; see `NcfConfig`."""

    kind: str = "neumf"


@recommender(NeuMfConfig)
class NeuMf(Ncf):
    """Both together."""

    forms: ClassVar[tuple[str, ...]] = ("gmf", "mlp")
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 4,
        "layers": (6,),
        "server": {"name": "sgd", "learning_rate": 1.0},
    }
