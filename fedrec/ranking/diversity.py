"""Orders that trade score against sameness, over a short list: MMR and a determinantal point process.

Both take scores that are scaled to [0, 1] over the short list, so that their one parameter means the same for every
model. Letters: m items of the short list, n wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mmr:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): next is the item with the highest
    (1 - weight) score - weight (greatest cosine to an item already chosen).

    Attributes:
        weight: 0 leaves the order by score, 1 looks at sameness alone.
    """

    weight: float = 0.3

    def __post_init__(self) -> None:
        _check(self.weight)

    def order(self, scores: Floats, vectors: Floats, n: int) -> list[int]:
        """n places of the short list, best first.

        Args:
            scores: [m].
            vectors: [m, d] of unit length (or zero).
            n: at most m.
        """
        relevance, left = (1 - self.weight) * _scaled(scores), np.ones(len(scores), bool)
        sameness = np.zeros(len(scores))
        chosen: list[int] = []
        for _ in range(min(n, len(scores))):
            value = np.where(left, relevance - self.weight * sameness, -np.inf)
            pick = int(np.argmax(value))
            chosen.append(pick)
            left[pick] = False
            cosine = vectors @ vectors[pick]
            sameness = cosine if len(chosen) == 1 else np.maximum(sameness, cosine)
        return chosen


@dataclass(frozen=True)
class Dpp:
    """Greedy most likely set of a determinantal point process (Chen, Zhang and Zhou 2018), kernel
    L = diag(q) S diag(q) with q = exp(scale · score) and S = (1 + cosine) / 2.

    Attributes:
        weight: from 0 (score alone) to 1 (diversity alone); scale = 3 (1 - weight) / max(weight, 0.01).
    """

    weight: float = 0.3

    def __post_init__(self) -> None:
        _check(self.weight)

    def kernel(self, scores: Floats, vectors: Floats) -> Floats:
        """[m, m] L."""
        scale = 3.0 * (1 - self.weight) / max(self.weight, 0.01)
        quality = np.exp(np.minimum(scale, 100.0) * (_scaled(scores) - 1))
        same = (1 + vectors @ vectors.T) / 2
        np.fill_diagonal(same, 1.0 + 1e-9)
        return np.asarray(quality[:, None] * same * quality[None, :])

    def order(self, scores: Floats, vectors: Floats, n: int) -> list[int]:
        """See `Mmr.order`; once the determinant is exhausted the rest follows by score."""
        kernel = self.kernel(scores, vectors)
        gain = kernel.diagonal().copy()
        factor = np.zeros((min(n, len(scores)), len(scores)))
        chosen: list[int] = []
        for step in range(len(factor)):
            pick = int(np.argmax(gain))
            if not gain[pick] > 1e-300:
                break
            chosen.append(pick)
            row = (kernel[pick] - factor[:step, pick] @ factor[:step]) / np.sqrt(gain[pick])
            factor[step] = row
            gain = gain - row**2
            gain[chosen] = -np.inf
        rest = [k for k in np.argsort(-scores, kind="stable").tolist() if k not in set(chosen)]
        return (chosen + rest)[: len(factor)]


Diversity = Mmr | Dpp


def unit(vectors: NDArray[np.floating]) -> Floats:
    """Rows of length 1; zero rows stay."""
    rows = np.asarray(vectors, dtype=np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _scaled(scores: Floats) -> Floats:
    spread = scores.max(initial=-np.inf) - scores.min(initial=np.inf)
    return (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))


def _check(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise DataError(f"diversity of weight {weight}: expected 0 (score alone) to 1")
