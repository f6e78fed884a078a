"""MLP: a small network over a private user vector and an item's row.

The score is h · relu(... W [p; q] ...) + b_i (He et al. 2017, "Neural collaborative filtering", WWW, equation 10).
What the three models share is in `_ncf`.

Letters: p user vector, q item vector.
"""

from __future__ import annotations

from typing import ClassVar

from fedrec.recommenders.collaborative._ncf import Ncf, NcfConfig
from fedrec.recommenders.registry import recommender


class MlpConfig(NcfConfig):
    """Configuration of MLP; see `NcfConfig`."""

    kind: str = "mlp"


@recommender(MlpConfig)
class Mlp(Ncf):
    """A network over both vectors."""

    forms: ClassVar[tuple[str, ...]] = ("mlp",)
