"""Orders that trade score against sameness, over a short list: MMR and a determinantal point process.

Both scale scores to [0, 1] over the short list, so that their one parameter means the same for every model; at
weight 0 both leave the order by score as it is. Letters: m items of the short list, n wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError

Floats = NDArray[np.float64]
#: Variance that an item keeps beside an equal one.
JITTER = 1e-9


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
    L = diag(q) S diag(q) with S = (1 + cosine) / 2 and log q = 3 (1 - weight) / weight · score.

    Attributes:
        weight: from 0 (score alone) to 1 (diversity alone).
    """

    weight: float = 0.3

    def __post_init__(self) -> None:
        _check(self.weight)

    def order(self, scores: Floats, vectors: Floats, n: int) -> list[int]:
        """See `Mmr.order`; each step takes the item that multiplies det(L) by most (algorithm 1 of the paper).

        That factor is q² times the variance that S leaves to the item once the chosen ones are known: in logarithms,
        which no quality over- or underflows, and times the weight, which makes 0 a weight like any.
        """
        relevance = 6 * (1 - self.weight) * _scaled(scores)
        left = np.full(len(scores), 1.0 + JITTER)
        factor = np.zeros((min(n, len(scores)), len(scores)))
        chosen: list[int] = []
        for step in range(len(factor)):
            value = relevance + self.weight * np.log(left)
            value[chosen] = -np.inf
            pick = int(np.argmax(value))
            chosen.append(pick)
            row = (1 + vectors @ vectors[pick]) / 2 - factor[:step, pick] @ factor[:step]
            factor[step] = row / np.sqrt(left[pick])
            left = np.maximum(left - factor[step] ** 2, JITTER / 2)
        return chosen


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
