"""Reading a noised sum of metrics: means over the evaluated users, with intervals for noise and sampling.

Everything here is computed from what was released, so it costs nothing. The interval of a mean m = S / n adds the
variance of the noise, by the delta method (1 + m²) σ² / n², to that of having evaluated these n users and not others.
For values in [0, 1] the latter is m (1 - m) / n at most (Bhatia and Davis 2000), and exactly so for a hit rate: other
intervals are a little too wide, since the users' own variance is not released.

Letters: K metrics, σ standard deviation of the noise on each value of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Two-sided 95 % of a normal distribution.
WIDTH = 1.959964
#: Said beside every private figure.
TUNING_NOT_COVERED = (
    "How settings were chosen is not covered: epsilon speaks of this run alone, and other runs on the same users's "
    "data, by which settings were picked, are not charged to it."
)
#: Said beside what is computed on data that a researcher holds.
HELD_DATA = "computed on data that the researcher holds; not a release, not covered by epsilon"


@dataclass(frozen=True)
class NoisedMean:
    """A mean over evaluated users.

    Attributes:
        value: within [0, 1].
        low, high: its 95 percent interval.
        noise_std: of the value, from the noise alone.
    """

    value: float
    low: float
    high: float
    noise_std: float


@dataclass(frozen=True)
class NoisedReport:
    """What a private run says of its model.

    Attributes:
        metrics: by name, as `full/ndcg@10`.
        users: evaluated users as released, noise and all; it may be a little below 0 or above their true number.
        users_std: standard deviation of its noise.
    """

    metrics: dict[str, NoisedMean]
    users: float
    users_std: float

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types; `metrics` has the shape of `EvaluationReport.as_dict`."""
        return {
            "noised": True,
            "users": {"value": self.users, "noise_std": self.users_std},
            "metrics": {
                "all": {
                    name: {"value": mean.value, "low": mean.low, "high": mean.high}
                    for name, mean in self.metrics.items()
                }
            },
            "noise_std": {name: mean.noise_std for name, mean in self.metrics.items()},
            "interval": "95 %, noise and sampling",
            "note": TUNING_NOT_COVERED,
        }


def noised_means(names: Sequence[str], released: NDArray[np.float64], std: float) -> NoisedReport:
    """The report of a released sum.

    Args:
        names: of the K metrics.
        released: [K + 1] noised sums, the last one of evaluated users.
        std: σ.
    """
    users = float(released[-1])
    # A count that noise has carried below one says nothing; then neither do the means.
    count = max(users, 1.0)
    return NoisedReport(
        {name: _mean(float(value), count, std) for name, value in zip(names, released[:-1], strict=True)},
        users,
        std,
    )


def _mean(total: float, count: float, std: float) -> NoisedMean:
    value = min(max(total / count, 0.0), 1.0)
    noise = math.sqrt(1.0 + value**2) * std / count
    width = WIDTH * math.sqrt(noise**2 + value * (1.0 - value) / count)
    return NoisedMean(value, max(value - width, 0.0), min(value + width, 1.0), noise)
