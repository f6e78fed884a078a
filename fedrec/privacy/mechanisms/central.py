"""Noise added where the sum is, by a coordinator that is trusted with clean sums.

The Gaussian mechanism (Dwork and Roth 2014, appendix A; exact bounds Balle and Wang 2018, arXiv 1805.06530) on the
sum of updates of L2 norm at most C. Out of scope: who may be trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.core.stage import RoundContext
from fedrec.core.updates import Floats, State
from fedrec.privacy._releases import GaussianRelease, Release
from fedrec.privacy.mechanism import Contribution, Mechanism, checked, noise_of, noised
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.settings import Trust


@MECHANISMS.register("central")
@dataclass(frozen=True)
class Central(Mechanism):
    """Clean sums from the nodes, one vector of noise on the total, also when the total is over no users."""

    trust: ClassVar[Trust] = "central"
    claims_sampling = True
    takes = frozenset({"adaptive", "carried", "separation"})
    sends_clean_sums = True
    trusted = "the server is trusted"
    noise_place = "once per round by the coordinator, to the sum, also when nobody answers"

    def noise_std(self, round_: int, l2: float) -> float:
        """z C; the count of unclipped updates takes its part of z."""
        return self.plan.update_multiplier(self.plan.noise_multipliers[round_ - 1]) * l2

    def releases(self, rounds: int) -> list[Release]:
        """One Gaussian per round that a user can be in, amplified by sampling where that is secret."""
        rate = self.plan.amplification
        return [GaussianRelease(z, 1, rate) for z in self.plan.charged_multipliers(rounds)]

    def lost_delta(self, rounds: int) -> float:
        """A neighbouring sum that wraps around is not hidden by noise that is added after the sum."""
        charged = len(self.plan.charged_multipliers(rounds))
        return 0.0 if self.plan.carried is None else 2.0 * self.plan.carried.wrap * charged

    @property
    def released_sentence(self) -> str:
        """The sums alone."""
        return "One noised sum of the users' updates per round ({rounds} rounds)."

    def adversary(self, outside: str) -> list[str]:
        """All but the server."""
        return [
            f"Protects against {outside}.",
            "The server is trusted: it adds up updates as they are, adds the noise, and must forget the clean sums.",
        ]

    def uncovered(self, *, plain: bool) -> list[str]:
        """The server."""
        return ["The server: it sees sums before noise is added, and picks who takes part."]

    def epsilon_of_nodes(self, users: float) -> float:
        """Infinite: nodes add no noise."""
        return math.inf

    def noised(
        self, vector: Contribution, users: int, context: RoundContext, state: State
    ) -> tuple[Floats, State]:
        """[P] the total plus normal noise, rounded to a grid; the count of unclipped updates has its own."""
        values, noise = checked(vector, users), noise_of(context)
        std, adaptive = self.noise_std(context.round, context.bound.l2), self.plan.adaptive
        if adaptive is None:
            return noised(values, std, noise), state
        if not len(values):
            raise PrivacyRefused("sum of 0 values: expected the count of unclipped updates as the last one")
        update = noised(values[:-1], std, noise)
        return np.append(update, noised(values[-1:], adaptive.count_noise_multiplier, noise)), state
