"""Noise that is added in training (unit "interaction"): DP-SGD over each user's own interactions.

The training is `fedrec.privacy.interaction`; sums carry their noise from then on, and none is added anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedrec.core.errors import PrivacyRefused
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.stage import VECTOR, Bound, LocalTraining, RoundContext, UserStages
from fedrec.core.updates import Floats, State, UpdateSum
from fedrec.privacy._releases import GaussianRelease, Release
from fedrec.privacy.mechanism import Contribution, Mechanism, View, checked, noise_of
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import Trust, Unit


@MECHANISMS.register("interaction")
@dataclass(frozen=True)
class OnDevice(Mechanism):
    """The mechanism of unit "interaction"."""

    unit: ClassVar[Unit] = "interaction"
    trust: ClassVar[Trust] = "local"
    takes = frozenset({"interaction"})
    needs = frozenset({"interaction"})
    noise_per_user = True
    noise_place = "on the node, to the sum of gradients of every local step (DP-SGD)"
    view: ClassVar[View] = "every message"

    @property
    def training(self) -> LocalTraining:
        """DP-SGD in the place of the recommender's own update."""
        return DpSgd(self.plan)

    def noise_std(self, round_: int, l2: float) -> float:
        """It depends on the model's step.

        Raises:
            PrivacyRefused: always; `fedrec.privacy.interaction.released_noise_std` knows it.
        """
        raise PrivacyRefused(
            "noise of unit 'interaction' depends on the model: use released_noise_std of `interaction`"
        )

    def released(self, flat: Floats, context: RoundContext) -> UpdateSum:
        """The vector, whose noise is not known here."""
        return UpdateSum({VECTOR: flat}, self.plan.denominator)

    def releases(self, rounds: int) -> list[Release]:
        """One sampled Gaussian for every local step; the device draws who joins, and no one else sees it."""
        limits = self.plan.interaction
        if limits is None:
            return []
        return [
            GaussianRelease(z, limits.local_steps, limits.batch_rate)
            for z in self.plan.noise_multipliers[:rounds]
        ]

    def user_epsilon(self) -> float:
        """Of all interactions of a user together, which is far more than that of a single one."""
        from fedrec.privacy.interaction import user_epsilon

        return user_epsilon(self.plan)

    def uncovered(self, *, plain: bool) -> list[str]:
        """What many interactions show together."""
        return ["Whole users: what shows in many interactions of a user is covered only by the user epsilon."]

    def sensitivity(self, bound: Bound, context: RoundContext) -> Bound:
        """None: each example's gradient is bounded in training, and the sum holds the noise that covers it."""
        return Bound()

    def noised(
        self, vector: Contribution, users: int, context: RoundContext, state: State
    ) -> tuple[Floats, State]:
        """[P] the total as it is."""
        return checked(vector, users), state


@dataclass(frozen=True)
class DpSgd:
    """Local training with DP-SGD.

    Attributes:
        plan: of unit "interaction".
    """

    plan: PrivacyPlan

    def train(
        self,
        recommender: Recommender,
        shared: State,
        local: State,
        batch: UserBatch,
        seed: RoundSeed,
        stages: UserStages,
    ) -> tuple[UpdateSum, State]:
        """See `LocalTraining`; the sum holds its noise."""
        from fedrec.privacy.interaction import train_interactions

        context = stages.context
        noise = noise_of(context).derive("interactions")
        return train_interactions(recommender, shared, local, batch, seed, self.plan, noise, context.n_items)

    def replacement(
        self,
        recommender: Recommender,
        shared: State,
        local: State,
        batch: UserBatch,
        seed: RoundSeed,
        stages: UserStages,
    ) -> tuple[UpdateSum, State]:
        """The noise of as many users without histories; no personal state changes."""
        return self.train(recommender, shared, local, batch.emptied(), seed, stages)[0], local
