"""Bounded exploration with exact propensities, so that logged lists can later judge another policy without bias.

One mechanism, three choosers. At each place that is still free a coin decides with probability `rate` whether to
explore; once a list has `most` explored places, no more. An explored place takes an item of the short list that may
stand there, drawn from

* `EpsilonGreedy`: all of them alike;
* `Thompson`: the best under a draw of the person's taste (Thompson 1933), θ ~ N(0, A^-1) around the model's scores;
  the taste is drawn from `draws` of them, so that each item's probability is a count and not an estimate;
* `LinUcb`: the highest score + width · sqrt(x' A^-1 x) (Li et al. 2010): one item, with probability 1,

with A = I + Σ x x' over the person's own history, x item vectors of unit length, scores in standard deviations of
the short list. The propensity of an item at its place is

    (1 - p) · [it is the best by score] + p · (its probability under the chooser),   p = rate or 0,

given the items above it. A `floor` of each chooser's probability is spread over all items alike, so that every item
that may stand at a place can be seen there: without it no log could say anything of the others. The product of the
propensities over a list is the probability of the list (Swaminathan and Joachims 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """What choosers know of the short list.

    Attributes:
        scores: [m] in standard deviations.
        vectors: [m, d] of unit length.
        root: [d, d] with root root' = A^-1.
    """

    scores: Floats
    vectors: Floats
    root: Floats

    @classmethod
    def of(cls, scores: Floats, vectors: Floats, seen: Floats) -> Uncertainty:
        """From scores [m], unit vectors [m, d] of the short list and [L, d] of the history."""
        spread = float(scores.std()) or 1.0
        left = np.eye(vectors.shape[1]) + seen.T @ seen
        root = np.linalg.inv(np.linalg.cholesky(left)).T
        return cls((scores - scores.mean()) / spread, vectors, root)


@dataclass(frozen=True)
class EpsilonGreedy:
    """See the module.

    Attributes:
        rate: probability that a place explores.
        most: share of a list that may be explored.
    """

    floor: ClassVar[float] = 1.0

    rate: float = 0.1
    most: float = 0.25

    def __post_init__(self) -> None:
        _check(self.rate, self.most, self.floor)

    def tastes(self, known: Uncertainty, rng: np.random.Generator) -> Floats:
        """[1, m] the scores; the floor is everything."""
        return known.scores[None, :]


@dataclass(frozen=True)
class Thompson:
    """See the module.

    Attributes:
        rate, most: as for `EpsilonGreedy`.
        width: how far tastes are drawn from the model's scores, in standard deviations of them.
        draws: how many tastes.
        floor: share of the probability that all items have alike.
    """

    rate: float = 0.2
    most: float = 0.25
    width: float = 1.0
    draws: int = 64
    floor: float = 0.05

    def __post_init__(self) -> None:
        _check(self.rate, self.most, self.floor)
        if not (self.draws >= 1 and np.isfinite(self.width)):
            raise DataError(f"{self}: expected at least 1 draw and a finite width")

    def tastes(self, known: Uncertainty, rng: np.random.Generator) -> Floats:
        """[draws, m] scores under each taste."""
        theta = rng.standard_normal((self.draws, known.root.shape[1])) @ known.root.T
        return np.asarray(known.scores + self.width * theta @ known.vectors.T)


@dataclass(frozen=True)
class LinUcb:
    """See the module.

    Attributes:
        rate, most: as for `EpsilonGreedy`.
        width: of the confidence bound.
        floor: share of the probability that all items have alike.
    """

    rate: float = 0.2
    most: float = 0.25
    width: float = 1.0
    floor: float = 0.05

    def __post_init__(self) -> None:
        _check(self.rate, self.most, self.floor)
        if not np.isfinite(self.width):
            raise DataError(f"{self}: expected a finite width")

    def tastes(self, known: Uncertainty, rng: np.random.Generator) -> Floats:
        """[1, m] upper bounds."""
        bound = np.linalg.norm(known.vectors @ known.root, axis=1)
        return np.asarray(known.scores + self.width * bound)[None, :]


Exploration = EpsilonGreedy | Thompson | LinUcb


class Explorer:
    """Chooses items place by place for one list.

    Args:
        policy: one of the three.
        known: of the short list.
        n: wanted.
        rng: decides.
    """

    def __init__(self, policy: Exploration, known: Uncertainty, n: int, rng: np.random.Generator) -> None:
        self._rate, self._floor, self._left = policy.rate, policy.floor, int(np.ceil(policy.most * n))
        self._tastes = policy.tastes(known, rng)
        self._rng = rng

    def choose(self, free: NDArray[np.int64], greedy: int) -> tuple[int, float, bool]:
        """An item for the next place, its propensity, and whether it was explored.

        Args:
            free: places in the short list of what may stand here.
            greedy: of them, the best by score.
        """
        rate = self._rate if self._left > 0 else 0.0
        if rate == 0.0:
            return greedy, 1.0, False
        probability = self._probabilities(free)
        explored = bool(self._rng.random() < rate)
        pick = int(self._rng.choice(free, p=probability)) if explored else greedy
        self._left -= explored
        chance = rate * float(probability[free == pick][0]) + (1 - rate) * (pick == greedy)
        return pick, chance, explored

    def _probabilities(self, free: NDArray[np.int64]) -> Floats:
        best = np.argmax(self._tastes[:, free], axis=1)
        share = np.bincount(best, minlength=len(free)) / len(best)
        return np.asarray((1 - self._floor) * share + self._floor / len(free))


def _check(rate: float, most: float, floor: float) -> None:
    if not (0 <= rate <= 1 and 0 <= most <= 1 and 0 < floor <= 1):
        raise DataError(
            f"exploration with rate {rate} of at most {most} of a list and floor {floor}: "
            "expected 0 to 1, the floor above 0"
        )
