"""Local differential privacy of updates: each user's update carries full noise before it leaves the node.

It is the strongest trust model and the most expensive one. Of a model update with P values each value has a
noise-to-signal ratio of z sqrt(P) / sqrt(n) in a sum over n users, which no population of real size pays for: it
exists for comparison and for models of a handful of numbers. Questions of a few answers are in
`fedrec.privacy.local_dp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedrec.core.stage import VECTOR, RoundContext
from fedrec.core.updates import Floats, State, UpdateSum
from fedrec.privacy._releases import GaussianRelease, Release
from fedrec.privacy.mechanism import (
    Contribution,
    Mechanism,
    View,
    checked,
    contribution,
    noise_of,
    noised,
    replaced,
)
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.settings import Trust


@MECHANISMS.register("local")
@dataclass(frozen=True)
class Local(Mechanism):
    """The mechanism of trust "local"."""

    trust: ClassVar[Trust] = "local"
    takes = frozenset({"separation"})
    noise_per_user = True
    noise_place = "in full for every single user, before anything leaves the node"
    view: ClassVar[View] = "every message"

    def noise_std(self, round_: int, l2: float) -> float:
        """That of one user, times the root of the planned cohort."""
        return self.plan.noise_multipliers[round_ - 1] * l2 * math.sqrt(self.plan.denominator)

    def releases(self, rounds: int) -> list[Release]:
        """One Gaussian per round that a user can be in; who takes part is seen, so sampling does not help."""
        return [GaussianRelease(z) for z in self.plan.charged_multipliers(rounds)]

    @property
    def least_users(self) -> int:
        """A message has a user."""
        return 1

    def on_node(self, total: UpdateSum, context: RoundContext) -> UpdateSum:
        """[P] the sum plus one full noise per user, as one draw."""
        users = int(total.users)
        values = contribution(total.blocks[VECTOR], users)
        std = self.plan.noise_multipliers[context.round - 1] * context.bound.l2
        return replaced(total, noised(values, std * math.sqrt(users), noise_of(context)))

    def noised(
        self, vector: Contribution, users: int, context: RoundContext, state: State
    ) -> tuple[Floats, State]:
        """[P] the total as it is."""
        return checked(vector, users), state
