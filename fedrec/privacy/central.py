"""Noise added where the sum is: by a coordinator that is trusted with clean sums, or already on the device.

The Gaussian mechanism (Dwork and Roth 2014, appendix A; exact bounds Balle and Wang 2018, arXiv 1805.06530) on the
sum of updates of L2 norm at most C. Out of scope: who may be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.mechanism import Contribution, Floats, checked, contribution
from fedrec.privacy.noise import NoiseSource, snap
from fedrec.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class FloatSums:
    """Base: contributions are float64 vectors."""

    plan: PrivacyPlan

    def zero(self, size: int) -> Contribution:
        """[size] zeros."""
        return np.zeros(size)

    def add(self, total: Contribution, contribution: Contribution) -> Contribution:
        """[P] float64 sum."""
        return np.add(total, contribution)


@dataclass(frozen=True)
class Central(FloatSums):
    """Clean sums from the nodes, one vector of noise on the total, also when the total is of no one."""

    def contribute(
        self, vector: Floats, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Contribution:
        """[P] the sum as it is."""
        return contribution(vector, users)

    def release(
        self, total: Contribution, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Floats:
        """[P] the total plus normal noise, rounded to a grid; the count of unclipped updates has its own."""
        values, adaptive = checked(total, users), self.plan.adaptive
        if adaptive is None:
            return noised(values, self.plan.noise_std(round_, clip_norm), noise)
        if not len(values):
            raise PrivacyRefused("sum of 0 values: expected the count of unclipped updates as the last one")
        update = noised(values[:-1], self.plan.noise_std(round_, clip_norm), noise)
        return np.append(update, noised(values[-1:], adaptive.count_noise_multiplier, noise))


@dataclass(frozen=True)
class OnDevice(FloatSums):
    """Sums whose noise is in them since training (unit "interaction"): nothing is added anywhere."""

    def contribute(
        self, vector: Floats, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Contribution:
        """[P] the sum as it is."""
        return contribution(vector, users)

    def release(
        self, total: Contribution, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Floats:
        """[P] the total as it is."""
        return checked(total, users)


def noised(values: Floats, std: float, noise: NoiseSource) -> Floats:
    """[P] values plus normal noise, rounded to a grid.

    Raises:
        PrivacyRefused: the standard deviation is not a finite number, 0 or more.
    """
    return snap(values + noise.normal(len(values), std), std)
