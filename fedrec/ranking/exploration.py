"""Bounded exploration with exact propensities, so that logged lists can later evaluate another policy without bias.

One mechanism, three choosers. At each place a coin decides with probability `rate` whether to explore; an explored
place takes an item of the short list that may stand there, drawn from

* `EpsilonGreedy`: all of them alike;
* `Thompson`: the best under a draw of the user's taste (Thompson 1933), θ ~ N(0, A^-1) around the model's scores;
  the taste is drawn from `draws` of them, so that each item's probability is a count and not an estimate;
* `LinUcb`: the highest score + width · sqrt(x' A^-1 x) (Li et al. 2010): one item, with probability 1,

with A = I + Σ x x' over the user's own history, x item vectors of unit length, scores in standard deviations of
the short list. The propensity of an item at its place, given the items above it, is

    (1 - p) · [it is first in order] + p · (its probability under the chooser),   p = rate or 0.

A `floor` of each chooser's probability is spread over all items alike, so that every item that may stand at a place
can be seen there: without it no log could say anything of the others. Once a list shows `most` places that are not
the first in order, p is 0: that bound depends on nothing but the items above, as it must for the propensities of a
list to multiply to its probability (Swaminathan and Joachims 2015), and lists beyond it cannot be evaluated.

Letters: m items of the short list, d size of a vector, L entries of the history.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """What choosers know of the short list, and do not know of the user.

    Inverses are taken of an [L, L] matrix: vectors may be long, the part of a history that counts is not.

    Attributes:
        scores: [m] in standard deviations.
        vectors: [m, d] of unit length.
        seen: [L, d] of unit length, of the history.
    """

    scores: Floats
    vectors: Floats
    seen: Floats

    @classmethod
    def of(cls, scores: Floats, vectors: Floats, seen: Floats) -> Uncertainty:
        """From scores on any scale."""
        spread = float(scores.std()) or 1.0
        return cls((scores - scores.mean()) / spread, vectors, seen)

    def draws(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """[count, m] x'θ for draws of θ ~ N(0, A^-1), made from a draw of N(0, I) and of the noise of the history."""
        prior = rng.standard_normal((count, self.vectors.shape[1]), np.float32)
        noise = rng.standard_normal((count, len(self.seen)), np.float32)
        seen = self.seen.astype(np.float32)
        surprise = np.linalg.solve(self._inner().astype(np.float32), (prior @ seen.T + noise).T)
        return np.asarray((prior - surprise.T @ seen) @ self.vectors.T.astype(np.float32), dtype=np.float32)

    def widths(self) -> Floats:
        """[m] sqrt(x' A^-1 x)."""
        cross = self.seen @ self.vectors.T
        known = np.einsum("lm,lm->m", cross, np.linalg.solve(self._inner(), cross))
        return np.asarray(np.sqrt(np.maximum(np.square(self.vectors).sum(axis=1) - known, 0.0)))

    def _inner(self) -> Floats:
        return np.asarray(np.eye(len(self.seen)) + self.seen @ self.seen.T)


@dataclass(frozen=True)
class EpsilonGreedy:
    """See the module.

    Attributes:
        rate: probability that a place explores.
        most: share of a list, rounded up to places, that may show another item than the first in order.
    """

    floor: ClassVar[float] = 1.0
    looks: ClassVar[bool] = False

    rate: float = 0.1
    most: float = 0.25

    def __post_init__(self) -> None:
        _check(self.rate, self.most, self.floor)

    def tastes(self, known: Uncertainty, rng: np.random.Generator) -> Floats:
        """[1, m] the scores; the floor is everything."""
        return np.asarray(known.scores[None, :])


@dataclass(frozen=True)
class Thompson:
    """See the module.

    Attributes:
        rate, most: as for `EpsilonGreedy`.
        width: how far tastes are drawn from the model's scores, in standard deviations of them.
        draws: how many tastes.
        floor: share of the probability that all items have alike.
    """

    looks: ClassVar[bool] = True

    rate: float = 0.2
    most: float = 0.25
    width: float = 1.0
    draws: int = 64
    floor: float = 0.05

    def __post_init__(self) -> None:
        _check(self.rate, self.most, self.floor)
        if not (self.draws >= 1 and np.isfinite(self.width)):
            raise DataError(f"{self}: expected at least 1 draw and a finite width")

    def tastes(self, known: Uncertainty, rng: np.random.Generator) -> NDArray[np.float32]:
        """[draws, m] scores under each taste."""
        return known.scores.astype(np.float32) + np.float32(self.width) * known.draws(self.draws, rng)


@dataclass(frozen=True)
class LinUcb:
    """See the module.

    Attributes:
        rate, most: as for `EpsilonGreedy`.
        width: of the confidence bound.
        floor: share of the probability that all items have alike.
    """

    looks: ClassVar[bool] = True

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
        return np.asarray(known.scores + self.width * known.widths())[None, :]


Exploration = EpsilonGreedy | Thompson | LinUcb


class Explorer:
    """Chooses items place by place for one list.

    Args:
        policy: one of the three.
        known: of the short list, in the order in which it fills places.
        n: places of the list.
        head: so many of them may be explored, from the top.
        rng: decides.
    """

    def __init__(
        self, policy: Exploration, known: Uncertainty, n: int, head: int, rng: np.random.Generator
    ) -> None:
        self._rate, self._floor = policy.rate, policy.floor
        self._left, self._head = math.ceil(policy.most * n), head
        self._tastes: NDArray[np.floating] = policy.tastes(known, rng)
        self._rng = rng

    def choose(self, free: NDArray[np.int64], place: int) -> tuple[int, float]:
        """An item for a place, counted from 0, and its propensity.

        Args:
            free: ascending places in the short list of what may stand here: the first is shown unless a coin decides.
        """
        first = int(free[0])
        free = free[: np.searchsorted(free, self._tastes.shape[1])]
        if self._left <= 0 or place >= self._head or self._rate == 0 or not len(free):
            return first, 1.0
        probability = self._probabilities(free)
        at = 0
        if self._rng.random() < self._rate:
            sums = probability.cumsum()
            at = min(int(np.searchsorted(sums, self._rng.random() * sums[-1], "right")), len(free) - 1)
        self._left -= at > 0
        return int(free[at]), min(1.0, self._rate * float(probability[at]) + (1 - self._rate) * (at == 0))

    def _probabilities(self, free: NDArray[np.int64]) -> Floats:
        draws, m = self._tastes.shape
        shut = np.full(m, -np.inf, dtype=self._tastes.dtype)
        shut[free] = 0.0
        wins = np.bincount((self._tastes + shut).argmax(axis=1), minlength=m)[free]
        return np.asarray((1 - self._floor) / draws * wins + self._floor / len(free))


def _check(rate: float, most: float, floor: float) -> None:
    if not (0 <= rate <= 1 and 0 <= most <= 1 and 0 < floor <= 1):
        raise DataError(
            f"exploration with rate {rate} of at most {most} of a list and floor {floor}: "
            "expected 0 to 1, the floor above 0"
        )
