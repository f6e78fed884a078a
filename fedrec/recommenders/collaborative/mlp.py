"""MLP: a small network over a private user vector and an item's row.

The score is h · relu(... W [p; q] ...) + b_i (He et al. 2017, "Neural collaborative filtering", WWW, equation 10).
What the three models share is in `_ncf`.

Letters: p user vector, q item vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedrec.recommenders.collaborative._ncf import Ncf, NcfConfig
from fedrec.recommenders.registry import recommender


class MlpConfig(NcfConfig):
    """Configuration of MLP; see `NcfConfig`."""

    kind: str = "mlp"


@recommender(MlpConfig)
class Mlp(Ncf):
    """A network over both vectors."""

    forms: ClassVar[tuple[str, ...]] = ("mlp",)
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 4,
        "layers": (6,),
        "server": {"name": "sgd", "learning_rate": 1.0},
    }
