"""EASE that keeps its accuracy under noise: two sums of bounded contributions, denoised before they are inverted.

The sums are those of `private_gram`; the weights are EASE's (Steck 2019, "Embarrassingly shallow
autoencoders for sparse data", WWW, equation 8) of what the noise left of the Gram matrix.

Letters: U users, k selected items.
Out of scope: what adds the noise and what it guarantees (`fedrec.privacy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import State
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import DenseWeights
from fedrec.recommenders.private._private_gram import Floats, PrivateGram, PrivateGramConfig, denoised
from fedrec.recommenders.registry import recommender

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class DpEaseConfig(PrivateGramConfig):
    """Configuration of private EASE; see `PrivateGramConfig` for the sums.

    Attributes:
        reg: λ, added to the diagonal of the denoised Gram matrix.
    """

    kind: str = "dp_ease"
    reg: float = Field(default=50.0, gt=0)


@recommender(DpEaseConfig)
class DpEase(PrivateGram):
    """Closed-form item-item weights from two noisy sums."""

    config: DpEaseConfig
    small: ClassVar[Mapping[str, Any]] = {"top_items": 12}

    def __init__(self, config: DpEaseConfig) -> None:
        super().__init__(config)
        self.config = config

    def solve(self, gram: Floats, noise_std: float) -> State:
        """weights [k, k]; column j scores item j."""
        with one_blas_thread():
            values, vectors = np.linalg.eigh(gram)
            clean = denoised(values, noise_std, self.config.cut)
            precision = (vectors / (clean + self.config.reg)) @ vectors.T
        weights = precision / -np.diag(precision)
        np.fill_diagonal(weights, 0.0)
        return {"weights": np.asarray(weights, dtype=np.float32)}

    def relevance(self, shared: State, asked: csr_array) -> NDArray[np.floating]:  # noqa: D102
        return np.asarray(asked @ shared["weights"])

    def serving_weights(self, shared: State) -> DenseWeights:  # noqa: D102
        return DenseWeights(FloatTable(shared["weights"]))
