"""Noise shares on the devices: integers whose sum carries the planned noise, so that no clean sum exists anywhere.

The Skellam mechanism (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995). A node multiplies its users' clipped sum by
the plan's scale, rounds it at random to integers, and adds Skellam noise, a share for each of its users; sums are
taken modulo 2^bits. Skellam is closed under sums: the shares of m users are exactly the noise of m shares.

Rounding uses one dither u in [0, 1) per value: floor(x + u). For any fixed u, leaving a user out changes the sum by
an integer vector that is a stochastic rounding of that user's own scaled update (his dither is the fractional part
of the others' sum plus u, again uniform). So the integer sensitivity is that of one rounded update, however many
users a node has: l2^2 <= C'^2 + P/4 + sqrt(2 ln(1/beta)) (C' + sqrt(P)/2) with probability 1 - beta, and always
(C' + sqrt(P))^2, C' = scale C (Kairouz, Liu and Steinke 2021, arXiv 2102.06387, proposition 26).

With few bits the sum is rotated first, by public signs, and back after the release (`integers`): P is then the padded
size n. A rotation keeps norms, so neither the sensitivity of a real vector nor the noise on a value changes.

Shares are sized for the floor: when exactly the planned part of the cohort answers, the noise is exactly as
planned; when more answer there is more noise than planned; when fewer do, nothing is released.

Out of scope: hiding the single contributions from the server (secure aggregation carries them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.integers import Integers
from fedrec.privacy.mechanism import Contribution, Floats, contribution
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan

#: Largest scaled value that still has exact integers around it in float64.
_EXACT = 2.0**52


@dataclass(frozen=True)
class Distributed:
    """The mechanism of trust "distributed"."""

    plan: PrivacyPlan

    @property
    def integers(self) -> Integers:
        """The plan's scale, bits and floor."""
        if self.plan.distributed is None:
            raise PrivacyRefused("integers belong to trust 'distributed': this plan has none")
        return self.plan.distributed

    @property
    def floor(self) -> float:
        """Least number of users whose shares make up the planned noise."""
        return self.integers.survivors * self.plan.denominator

    def contribute(
        self, vector: Floats, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Contribution:
        """[n] int64 residues: the rounded sum plus one share of noise per user, modulo 2^bits."""
        if clip_norm > self.plan.clip_norm * (1.0 + 1e-12):
            raise PrivacyRefused(f"clip norm {clip_norm}: expected the plan's {self.plan.clip_norm} or less")
        if len(vector) > self.plan.parameters:
            raise PrivacyRefused(
                f"sum of {len(vector)} values: expected at most the plan's {self.plan.parameters}, "
                "for which rounding was charged"
            )
        values, rotation = contribution(vector, users), self.integers.rotation(len(vector), round_)
        if rotation is not None:
            values = np.asarray(rotation.apply(values))
        rounded = dithered(values * self.integers.scale, noise)
        shares = noise.skellam(len(rounded), users * self.plan.share_variance(round_))
        return self._residues(rounded + shares)

    def zero(self, size: int) -> Contribution:
        """[n] int64 zeros: as many as a vector of `size` values takes."""
        return np.zeros(self.integers.coordinates(size), dtype=np.int64)

    def add(self, total: Contribution, contribution: Contribution) -> Contribution:
        """[n] int64 sum modulo 2^bits."""
        return self._residues(np.add(total, contribution))

    def release(
        self, total: Contribution, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Floats:
        """[n] what the residues say, the first P of which are the sum; refused below the floor."""
        if users < self.floor * (1.0 - 1e-12):
            raise PrivacyRefused(
                f"round {round_}: {users} users answered, expected at least {self.floor:g} for the planned noise; "
                "nothing was released"
            )
        return self.readable(total, round_)

    def readable(self, residues: Contribution, round_: int) -> Floats:
        """[n] the integers nearest to zero with these residues, over the scale, rotated back.

        Beyond the values that were carried there is nothing but noise.
        """
        half = 1 << (self.integers.bits - 1)
        centred = self._residues(np.asarray(residues, dtype=np.int64) + half) - half
        values = np.asarray(centred / self.integers.scale)
        rotation = self.integers.rotation(len(values), round_)
        return values if rotation is None else np.asarray(rotation.undo(values))

    def _residues(self, values: Contribution) -> Contribution:
        return np.bitwise_and(values, (1 << self.integers.bits) - 1)


def dithered(values: Floats, noise: NoiseSource) -> Contribution:
    """[P] int64 floor(values + u), u uniform in [0, 1): unbiased rounding; too large values count as the largest.

    `PrivacyTerms` are valid only if sums of clipped updates stay far below that bound, so no honest one meets it.
    """
    values = np.clip(values, -_EXACT, _EXACT)
    base = np.floor(values)
    # floor(values + u) without the rounding error of that sum, which grows with the values.
    up = noise.uniform(len(values)) >= 1.0 - (values - base)
    return np.asarray(base.astype(np.int64) + up)
