"""What can leave a private computation, as the accountant sees it: noise relative to sensitivity, and how often.

A schedule is a list of releases, not a running epsilon: a list can be charged again by another accountant.
Out of scope: what the numbers of a release mean for learning, and the accounting itself (`accounting`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedrec.core.errors import ConfigError


@dataclass(frozen=True)
class GaussianRelease:
    """Gaussian noise of standard deviation `noise_multiplier` times the L2 sensitivity.

    Attributes:
        noise_multiplier: z; 0 releases the value itself, infinity releases nothing.
        count: how many times.
        sampling_rate: of Poisson sampling whose amplification is claimed; 1: none is.
    """

    noise_multiplier: float
    count: int = 1
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        _check(
            "noise_multiplier", self.noise_multiplier, self.noise_multiplier >= 0, "a number of at least 0"
        )
        _check("count", self.count, self.count >= 0, "a whole number of at least 0")
        _check("sampling_rate", self.sampling_rate, 0 <= self.sampling_rate <= 1, "a number in [0, 1]")


@dataclass(frozen=True)
class SkellamRelease:
    """A sum of integers with symmetric Skellam noise (Agarwal, Kairouz, Liu 2021, arXiv 2110.04995).

    Attributes:
        l2, l1: sensitivities, in integer units.
        variance: of the noise on every coordinate of the whole sum, in integer units.
        count: how many times.
    """

    l2: float
    l1: float
    variance: float
    count: int = 1

    def __post_init__(self) -> None:
        _check("l2", self.l2, self.l2 >= 0, "a number of at least 0")
        _check("l1", self.l1, self.l1 >= self.l2, "at least l2 (the norms are of integers)")
        _check("variance", self.variance, self.variance >= 0, "a number of at least 0")
        _check("count", self.count, self.count >= 0, "a whole number of at least 0")


@dataclass(frozen=True)
class PureRelease:
    """A mechanism of pure `epsilon`-differential privacy, such as randomised response."""

    epsilon: float
    count: int = 1

    def __post_init__(self) -> None:
        _check("epsilon", self.epsilon, self.epsilon >= 0, "a number of at least 0")
        _check("count", self.count, self.count >= 0, "a whole number of at least 0")


Release = GaussianRelease | SkellamRelease | PureRelease


def merged(releases: Sequence[Release]) -> tuple[Release, ...]:
    """The same schedule with equal releases counted together and those that reveal nothing left out."""
    counts: dict[Release, int] = {}
    for release in releases:
        if release.count and not _silent(release):
            one = replace(release, count=1)
            counts[one] = counts.get(one, 0) + release.count
    return tuple(replace(one, count=count) for one, count in counts.items())


def reveals_all(release: Release) -> bool:
    """True if no epsilon is finite: no noise, or an infinite epsilon."""
    match release:
        case GaussianRelease():
            return release.noise_multiplier == 0
        case SkellamRelease():
            return release.variance == 0
        case PureRelease():
            return math.isinf(release.epsilon)


def _silent(release: Release) -> bool:
    match release:
        case GaussianRelease():
            return release.sampling_rate == 0 or math.isinf(release.noise_multiplier)
        case SkellamRelease():
            return release.l2 == 0 or math.isinf(release.variance)
        case PureRelease():
            return release.epsilon == 0


def _check(name: str, value: float, good: bool, expected: str) -> None:
    # A comparison with NaN is false, so NaN is refused by every bound.
    if not good:
        raise ConfigError(f"release {name} = {value!r}: expected {expected}; mend the privacy settings")
