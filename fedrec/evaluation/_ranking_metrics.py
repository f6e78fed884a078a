"""How good predictions of clicks and ratings are, as sums that devices can add up in secret.

A ranker says a probability for each item it is asked about. From sums alone come the log loss, the Brier score, the
area under the ROC curve (through histograms of the predictions of both classes, ties counted half: with 1,000 bins
off by at most half the share of pairs that share a bin), the mean area within a user, and how far probabilities are
from what happened (expected calibration error, Naeini et al. 2015, AAAI). `rescale` calibrates afterwards: two
numbers (Platt 1999) found by Newton steps on sums of gradients.

Letters: N predictions, B bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import IntArray
from fedrec.core.updates import Floats, State

BINS = 1000
CALIBRATION_BINS = 15
#: Probabilities are kept so far from 0 and 1 where a logarithm is taken.
EDGE = 1e-7


@dataclass(frozen=True)
class RankerSums:
    """Sums over predictions; those of all devices are the sum of each device's.

    Attributes:
        positive, negative: [B] predictions of each class by probability; a share of the full rating counts in both.
        count, hit, expected: [CALIBRATION_BINS] predictions, their outcomes and their probabilities.
        totals: [5] predictions, log loss, squared error, users who have both classes, their areas.
    """

    positive: Floats
    negative: Floats
    count: Floats
    hit: Floats
    expected: Floats
    totals: Floats

    @classmethod
    def empty(cls) -> RankerSums:
        """Of no one."""
        bins = [np.zeros(n) for n in (BINS, BINS, *[CALIBRATION_BINS] * 3, 5)]
        return cls(*bins)

    @classmethod
    def of(
        cls, probability: NDArray[np.floating], outcome: NDArray[np.floating], user: IntArray
    ) -> RankerSums:
        """Sums of some predictions.

        Args:
            probability: [N] 0 to 1.
            outcome: [N] what happened, 0 to 1.
            user: [N] whom each is about.

        Raises:
            DataError: lengths differ, or something is not a number from 0 to 1.
        """
        if not probability.shape == outcome.shape == user.shape:
            raise DataError(
                f"{probability.shape} probabilities, {outcome.shape} outcomes and {user.shape} users: "
                "expected as many of each"
            )
        for name, values in (("probability", probability), ("outcome", outcome)):
            if not ((values >= 0) & (values <= 1)).all():
                raise DataError(f"a {name} is not a number from 0 to 1")
        p, y = probability.astype(np.float64), outcome.astype(np.float64)
        fine, coarse = _bin(p, BINS), _bin(p, CALIBRATION_BINS)
        inner = np.clip(p, EDGE, 1 - EDGE)
        loss = -(y * np.log(inner) + (1 - y) * np.log(1 - inner))
        users, area = _areas_within(p, y, user)
        return cls(
            _histogram(fine, y, BINS),
            _histogram(fine, 1 - y, BINS),
            _histogram(coarse, np.ones(len(p)), CALIBRATION_BINS),
            _histogram(coarse, y, CALIBRATION_BINS),
            _histogram(coarse, p, CALIBRATION_BINS),
            np.array([len(p), loss.sum(), np.square(p - y).sum(), users, area]),
        )

    def merge(self, other: RankerSums) -> RankerSums:
        """Both together."""
        return RankerSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_arrays(self) -> State:
        """As arrays that can be summed in secret."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: State) -> RankerSums:
        """Of arrays of `to_arrays`, or of their sum."""
        return cls(*(np.asarray(arrays[f.name], dtype=np.float64) for f in fields(cls)))

    def bounds(self, evaluated: float) -> list[tuple[str, Floats, Floats | float]]:
        """What sums over `evaluated` users can be: names, values, and the highest possible ones; the lowest are 0."""
        n, loss, square, users, areas = self.totals
        classes = np.array([self.positive.sum() + self.negative.sum(), self.count.sum()])
        return [
            ("hits", self.hit, self.count),
            ("expected hits", self.expected, self.count),
            ("positive answers", self.positive, n),
            ("negative answers", self.negative, n),
            ("answers by bin", classes, n),
            ("log loss", loss, -np.log(EDGE) * n),
            ("squared error", square, n),
            ("users with both classes", users, evaluated),
            ("areas", areas, users),
        ]

    def report(self) -> dict[str, float]:
        """The figures; NaN where there is nothing to say.

        Keys: "auc", "auc_within" (mean over users), "log_loss", "likelihood" (exp(-log loss): the geometric mean of
        what was said of that which happened), "rmse" (root of the Brier score), "calibration" (expected calibration
        error), "mean" (of the predictions), "outcome" (mean).
        """
        n, loss, square, users, areas = self.totals
        if n == 0:
            return dict.fromkeys(
                ("auc", "auc_within", "log_loss", "likelihood", "rmse", "calibration", "mean", "outcome"),
                np.nan,
            )
        return {
            "auc": _area(self.positive, self.negative),
            "auc_within": float(areas / users) if users else np.nan,
            "log_loss": float(loss / n),
            "likelihood": float(np.exp(-loss / n)),
            "rmse": float(np.sqrt(square / n)),
            "calibration": float(np.abs(self.expected - self.hit).sum() / n),
            "mean": float(self.expected.sum() / n),
            "outcome": float(self.hit.sum() / n),
        }


@dataclass(frozen=True)
class Scaling:
    """sigmoid(slope · logit(p) + shift)."""

    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, probability: NDArray[np.floating]) -> Floats:
        """[N] calibrated."""
        return 1.0 / (1.0 + np.exp(-(self.slope * logit(probability) + self.shift)))


def newton_sums(
    scaling: Scaling, probability: NDArray[np.floating], outcome: NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """Gradient [2] and Hessian [2, 2] of the log loss of a device's predictions; sums over devices add up."""
    x = np.stack([logit(probability), np.ones(len(probability))])
    p = scaling(probability)
    return x @ (p - outcome), (x * (p * (1 - p))) @ x.T


def rescale(ask: Callable[[Scaling], tuple[Floats, Floats]], rounds: int = 8, ridge: float = 1e-6) -> Scaling:
    """The scaling that minimises the log loss.

    Args:
        ask: gives the sums of `newton_sums` over all devices.
        rounds: Newton steps.
        ridge: keeps the step finite where all predictions are alike.
    """
    scaling = Scaling()
    for _ in range(rounds):
        gradient, hessian = ask(scaling)
        step = np.linalg.solve(hessian + ridge * np.eye(2), gradient)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        scaling = Scaling(scaling.slope - float(step[0]), scaling.shift - float(step[1]))
    return scaling


def logit(probability: NDArray[np.floating]) -> Floats:
    """[N] log odds."""
    p = np.clip(np.asarray(probability, dtype=np.float64), EDGE, 1 - EDGE)
    return np.asarray(np.log(p / (1 - p)))


def _bin(p: Floats, bins: int) -> IntArray:
    return np.minimum((p * bins).astype(np.int64), bins - 1)


def _histogram(where: IntArray, weight: Floats, bins: int) -> Floats:
    return np.bincount(where, weight, bins).astype(np.float64)


def _area(positive: Floats, negative: Floats) -> float:
    """Chance that a positive stands above a negative, those of one bin counting half."""
    pairs = float(positive.sum() * negative.sum())
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


def _areas_within(p: Floats, y: Floats, user: IntArray) -> tuple[int, float]:
    """Number of users with both classes, and the sum of the areas of each."""
    users, total = 0, 0.0
    for rows in np.split(
        np.argsort(user, kind="stable"), np.cumsum(np.unique(user, return_counts=True)[1])[:-1]
    ):
        up, down = p[rows][y[rows] >= 0.5], p[rows][y[rows] < 0.5]
        if len(up) and len(down):
            users += 1
            total += float(((up[:, None] > down) + 0.5 * (up[:, None] == down)).mean())
    return users, total
