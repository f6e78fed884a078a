"""What a plan claims of one view of a run, in the form in which scores can be held against it.

The claim is a whole trade-off curve, not one epsilon: for every attack, a bound on the rate of right answers given
the rate of wrong ones. Evidence is read as a *noise scale*: how much of the planned noise can there have been, at
most? A scale below 1 refutes the plan, and the accounting of a schedule with that much noise gives the epsilon.
Skellam noise is taken as the Gaussian of its variance, and the plan's own (higher) epsilon stays the claim.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from fedrec.privacy.accounting import GaussianRelease, epsilon
from fedrec.privacy.audit._bounds import Effect, Floats, Rates
from fedrec.privacy.plan import PrivacyPlan

#: Smallest and largest noise scale that is looked for under sampling.
SCALES = (0.1, 10.0)
#: A share of the planned noise below which there is none: the accountants are not asked about it.
NO_NOISE = 1e-4
#: Under sampling, multipliers below it are taken for it: it is ruin already, and the accountants lose their footing.
LEAST_SAMPLED = 0.1


@dataclass(frozen=True)
class Theory:
    """A schedule of Gaussian releases and what is claimed of it.

    Attributes:
        multipliers: z of each release.
        sampling_rate: whose amplification is claimed; 1: none.
        delta: of the claim.
        epsilon: of the claim.
    """

    multipliers: tuple[float, ...]
    sampling_rate: float
    delta: float
    epsilon: float

    @classmethod
    def of(cls, plan: PrivacyPlan, rounds: int) -> Theory:
        """What the plan claims of its first `rounds` rounds."""
        releases, multipliers = plan.noise_model.releases(rounds), plan.noise_multipliers[:rounds]
        if all(isinstance(each, GaussianRelease) for each in releases):
            multipliers = tuple(
                each.noise_multiplier
                for each in releases
                if isinstance(each, GaussianRelease)
                for _ in range(each.count)
            )
        return cls(multipliers, plan.amplification, plan.delta, plan.epsilon(rounds))

    @classmethod
    def lone(cls, plan: PrivacyPlan) -> Theory:
        """What it claims of round 1 for a user who is known to be in it, so that no sampling helps."""
        first = tuple(plan.noise_multipliers[:1])
        if plan.amplification == 1.0:
            return cls.of(plan, 1)
        return cls(first, 1.0, plan.delta, epsilon([GaussianRelease(first[0])], plan.delta))

    @property
    def mu(self) -> float:
        """Of the schedule without sampling: sqrt(sum of 1 / z^2)."""
        return math.sqrt(sum(z**-2.0 for z in self.multipliers))

    def epsilon_at(self, scale: float | Sequence[float]) -> float:
        """Epsilon of the same schedule with that much of its noise, in all rounds or in each."""
        scales = [scale] * len(self.multipliers) if isinstance(scale, float) else list(scale)
        if min(scales) < NO_NOISE:
            return math.inf
        if self.sampling_rate < 1.0:
            # Both on the same coarse grid, so that its rounding falls out.
            planned = float(_losses(self.multipliers, self.sampling_rate).get_epsilon_for_delta(self.delta))
            return self.epsilon * self._sampled(scales) / planned
        known = [(z, s) for z, s in zip(self.multipliers, scales, strict=True) if math.isfinite(s)]
        return epsilon([GaussianRelease(z * s) for z, s in known], self.delta)

    def scale_of_rates(self, found: Rates) -> float:
        """The most noise (as a part of the planned) that allows these error rates; infinite if any does."""
        if self.sampling_rate == 1.0:
            return self.scale_of_mu(found.mu())
        low, high = SCALES
        if found.tpr <= self._tpr(found.fpr, high):
            return math.inf
        while high / low > 1.02:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if found.tpr <= self._tpr(found.fpr, middle) else (low, middle)
        return high

    def scale_of_mu(self, mu: float) -> float:
        """The most noise of an unsampled schedule whose mu is at least `mu`."""
        return self.mu / mu if mu > 0 else math.inf

    def scales_of_effect(self, found: Effect) -> tuple[float, float, float]:
        """The noise scale that a distance of means speaks for, the most that it allows, and the least.

        Someone who takes part with probability q in each round moves the mean by q times mu.
        """
        return tuple(  # type: ignore[return-value]
            self.sampling_rate * self.mu / d if d > 0 else math.inf
            for d in (found.value, found.low, found.high)
        )

    def _tpr(self, fpr: float, scale: float) -> float:
        """Most right answers that the claim allows at a rate of wrong ones: e^x FPR + delta(x), over all x."""
        losses = np.linspace(0.0, 60.0, 601)
        deltas = np.asarray(_losses(self._scaled(scale), self.sampling_rate).get_delta_for_epsilon(losses))
        forward = np.exp(losses) * fpr + deltas
        backward = 1.0 - np.exp(-losses) * (1.0 - fpr - deltas)
        return float(min(1.0, forward.min(), backward.min()))

    def _sampled(self, scales: Sequence[float]) -> float:
        with_noise = tuple(z * s for z, s in zip(self.multipliers, scales, strict=True) if math.isfinite(s))
        if not with_noise:
            return 0.0
        return float(_losses(with_noise, self.sampling_rate).get_epsilon_for_delta(self.delta))

    def _scaled(self, scale: float) -> tuple[float, ...]:
        return tuple(z * scale for z in self.multipliers)


@functools.lru_cache(maxsize=256)
def _losses(multipliers: tuple[float, ...], sampling_rate: float) -> Any:
    """Privacy loss of a sampled schedule, on a coarse grid whose rounding is in favour of the claim."""
    from dp_accounting.pld import privacy_loss_distribution

    grid = min(max(0.02 / math.sqrt(len(multipliers)), 5e-4), 1e-2)
    total = None
    for z, count in Counter(multipliers).items():
        one = privacy_loss_distribution.from_gaussian_mechanism(
            max(z, LEAST_SAMPLED), sampling_prob=sampling_rate, value_discretization_interval=grid
        )
        part = one.self_compose(count) if count > 1 else one
        total = part if total is None else total.compose(part)
    return total


def noise_upper(squares: float, values: int, alpha: float) -> float:
    """Upper bound of a standard deviation from the squares of normals of mean 0, missed with probability alpha."""
    from scipy.stats import chi2

    return math.sqrt(squares / float(chi2.ppf(alpha, values)))


def correlation_lower(a: Floats, b: Floats, alpha: float) -> float:
    """Lower bound on |correlation| of paired values of mean 0 (Fisher's z); 0 if they may be independent."""
    size = math.sqrt(float(a @ a) * float(b @ b))
    if size == 0.0:
        return 0.0
    z = math.atanh(min(abs(float(a @ b)) / size, 1.0 - 1e-12))
    return math.tanh(max(0.0, z + float(ndtri(alpha / 2)) / math.sqrt(max(len(a) - 3, 1))))
