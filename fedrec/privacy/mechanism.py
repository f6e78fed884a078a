"""The base of all mechanisms: the last stage of a private chain, on one flat vector.

P is the length of the flat vector. With adaptive clipping its last value is the count of unclipped updates, which is
noised on its own terms.

Out of scope: clipping, what the noise is worth (`plan`, `accounting`), and charging it before the release (`ledger`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError, PrivacyRefused, ProtocolError
from fedrec.core.stage import VECTOR, Bound, LocalTraining, Noise, RoundContext, Stage
from fedrec.core.updates import Floats, Layout, State, UpdateSum
from fedrec.privacy._releases import Release
from fedrec.privacy.accounting import Accountant
from fedrec.privacy.adaptive import COUNT_SENSITIVITY
from fedrec.privacy.noise import snap
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import OptionValue, Trust, Unit

#: What a node sends: float64 values or, distributed, int64 residues modulo 2^bits.
Contribution = NDArray[Any]
#: What an attacker of an audit sees: what is released of a sum, or what each user's device sends.
View = Literal["every round", "every message"]


@dataclass(frozen=True)
class Mechanism(Stage):
    """A stage that adds the noise of a plan.

    Attributes:
        plan: what it carries out.
    """

    name = "mechanism"
    unit: ClassVar[Unit] = "user"
    trust: ClassVar[Trust] = "central"
    claims_sampling: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    accountants: ClassVar[tuple[Accountant, ...]] = ("pld", "rdp")
    #: Whether what a node sends is clean, so that the server must be trusted and can check norms.
    sends_clean_sums: ClassVar[bool] = False
    #: Whether the noise in a sum grows with the users behind it, since each adds some.
    noise_per_user: ClassVar[bool] = False
    #: Whether the guarantee against the server holds for sums over nodes alone.
    needs_secure_aggregation: ClassVar[bool] = False
    #: Who is trusted, in a few words.
    trusted: ClassVar[str] = "no one but one's own node is trusted"
    #: Distribution of the noise, for the statement.
    noise_kind: ClassVar[str] = "Gaussian"
    #: Where it is added, for the statement: "noise is added ...".
    noise_place: ClassVar[str] = ""
    view: ClassVar[View] = "every round"
    #: Whether the noise of a round depends on that of the rounds before; `independent` undoes it for an audit.
    correlates_rounds: ClassVar[bool] = False

    plan: PrivacyPlan

    # What the plan and the accountant ask ----------------------------------------------------------------

    @classmethod
    def planned(cls, options: Mapping[str, OptionValue], fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields of the plan that follow from the options of the settings; see `NoiseModel`."""
        if options:
            raise ConfigError(
                f"privacy.options has {', '.join(options)}: this mechanism takes none; leave them out"
            )
        return {}

    def problems(self) -> list[str]:
        """What else of the plan does not fit this mechanism, one line each."""
        return ["options of a mechanism that takes none: leave them out"] if self.plan.options else []

    @abstractmethod
    def noise_std(self, round_: int, l2: float) -> float:
        """Standard deviation of the noise on each value of the released sum, see `NoiseModel`."""

    def effective_std(self, round_: int, l2: float) -> float:
        """The noise itself, where it is independent between rounds."""
        return self.noise_std(round_, l2)

    @abstractmethod
    def releases(self, rounds: int) -> list[Release]:
        """What the first `rounds` rounds release about one unit."""

    def lost_delta(self, rounds: int) -> float:
        """Part of delta that integers take in so many rounds: rounding too far, or wrapping around."""
        return 0.0

    # What the statement and an audit ask -----------------------------------------------------------------

    @property
    def released_sentence(self) -> str:
        """What is released in the rounds; `{rounds}` stands for their number."""
        return "What every node sends, with its noise, in each of {rounds} rounds, and the sums."

    def adversary(self, outside: str) -> list[str]:
        """Against whom it protects, and who is trusted, in sentences.

        Args:
            outside: names all who get the models.
        """
        return [
            f"Protects against {outside}, and against the server and the network: the noise is added before sending."
        ]

    def uncovered(self, *, plain: bool) -> list[str]:
        """What the guarantee does not speak about because of this mechanism, in sentences.

        Args:
            plain: the server sees what every node sends.
        """
        return []

    def epsilon_of_nodes(self, users: float) -> float:
        """Epsilon, at the plan's delta, against a server that can take away all noise but that of `users` users."""
        return self.plan.epsilon()

    def user_epsilon(self) -> float:
        """Epsilon of a whole user, whatever the unit of the plan is."""
        return self.plan.epsilon()

    @property
    def least_users(self) -> int:
        """The fewest users with whom something is released."""
        return 0

    def audited_users(self, users: int) -> int:
        """With how many users an audit sums, where `users` are in a cohort: the worst case that is released."""
        return users

    def independent(self, outputs: Sequence[Floats]) -> list[Floats]:
        """What an attacker makes of the outputs of rounds 1, 2, ..., so that their noise is independent.

        Args:
            outputs: released vectors, or the same linear function of each.
        """
        return list(outputs)

    @property
    def training(self) -> LocalTraining | None:
        """What takes the place of the recommender's own updates; None: nothing does."""
        return None

    # The stage -------------------------------------------------------------------------------------------

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """The layout itself.

        Raises:
            ProtocolError: the round is not in the plan.
        """
        if not 1 <= context.round <= self.plan.rounds:
            raise ProtocolError(f"round {context.round} was asked for: the plan has {self.plan.rounds}")
        return layout

    def on_node(self, total: UpdateSum, context: RoundContext) -> UpdateSum:
        """What a node sends for its cohort users: never refused because of the values."""
        return replaced(total, contribution(total.blocks[VECTOR], int(total.users)))

    def on_server(self, total: UpdateSum, context: RoundContext, state: State) -> tuple[UpdateSum, State]:
        """The noised sum over the plan's fixed denominator.

        Raises:
            PrivacyRefused: the noise in it is less than planned, or it is not finite; nothing may be released.
        """
        values, after = self.noised(total.blocks[VECTOR], int(total.users), context, state)
        return self.released(values, context), after

    @abstractmethod
    def noised(
        self, vector: Contribution, users: int, context: RoundContext, state: State
    ) -> tuple[Floats, State]:
        """The released vector of a sum over `users` users, and the next state; see `on_server`."""

    def zero(self, size: int) -> Contribution:
        """The sum over no users, for vectors of `size` values."""
        return np.zeros(size)

    def released(self, flat: Floats, context: RoundContext) -> UpdateSum:
        """A released vector as a sum over the fixed denominator, with its noise."""
        std = self.noise_std(context.round, context.bound.l2)
        return UpdateSum({VECTOR: flat}, self.plan.denominator, noise_std=std)

    def packed(self, vector: Floats, state: State) -> Floats:
        """A released vector with the next state, as one array of which no part may be lost without the other."""
        return vector

    def unpacked(self, values: Floats, context: RoundContext) -> tuple[Floats, State]:
        """What `packed` was given."""
        return values, {}

    def facts(self, context: RoundContext) -> Mapping[str, Any]:
        """The fixed number of users that stands for the cohort."""
        return {"users": self.plan.denominator}

    # Sums that are not updates (metrics, counts, audits) -------------------------------------------------

    def context(self, round_: int, clip_norm: float, noise: Noise) -> RoundContext:
        """The context of a flat vector of norm at most `clip_norm` (and the count, if there is one), by itself."""
        count = 0.0 if self.plan.adaptive is None else COUNT_SENSITIVITY
        bound = Bound(clip_norm + self.plan.rounding, count)
        context = RoundContext(round_, bound=bound, noise=noise)
        return replace(context, bound=self.sensitivity(bound, context))

    def contribute(
        self, vector: Floats, users: int, round_: int, clip_norm: float, noise: Noise
    ) -> Contribution:
        """[P] what a node sends of a flat vector that is the sum over `users` users, each within `clip_norm`."""
        context = self.context(round_, clip_norm, noise)
        return self.on_node(UpdateSum({VECTOR: vector}, users), context).blocks[VECTOR]

    def add(self, total: Contribution, contribution: Contribution) -> Contribution:
        """[P] their sum; neither is changed."""
        return np.add(total, contribution)

    def release(self, total: Contribution, users: int, round_: int, clip_norm: float, noise: Noise) -> Floats:
        """The noised sum in the first P values; distributed integers may leave noise behind them.

        Raises:
            PrivacyRefused: see `on_server`.
        """
        context = self.context(round_, clip_norm, noise)
        return self.noised(total, users, context, self.init())[0]


def mechanism_of(plan: PrivacyPlan) -> Mechanism:
    """The mechanism that carries out a plan.

    Raises:
        PrivacyRefused: what is registered under its name is not one.
    """
    made = MECHANISMS.get(plan.mechanism_name, paths=False)(plan)
    if not isinstance(made, Mechanism):
        raise PrivacyRefused(f"mechanism {plan.mechanism_name!r} is {made!r:.80}: expected a Mechanism")
    return made


def replaced(total: UpdateSum, vector: Contribution) -> UpdateSum:
    """The same sum with another vector."""
    return replace(total, blocks={VECTOR: vector})


def noise_of(context: RoundContext) -> Noise:
    """The source of noise of a round.

    Raises:
        PrivacyRefused: there is none.
    """
    if context.noise is None:
        raise PrivacyRefused(f"round {context.round} has no source of noise: nothing is released")
    return context.noise


def noised(values: Floats, std: float, noise: Noise) -> Floats:
    """[P] values plus normal noise, rounded to a grid.

    Raises:
        PrivacyRefused: the standard deviation is not a finite number, 0 or more.
    """
    return snap(values + noise.normal(len(values), std), std)


def contribution(vector: Contribution, users: int) -> Floats:
    """[P] what a node's users give, as float64: zero where it is not finite, or where no user is behind it.

    A node's answer must not depend on data in any other way than by its values, so nothing is refused here.
    """
    values = np.asarray(vector, dtype=np.float64).reshape(-1)
    return np.where(np.isfinite(values) & (users > 0), values, 0.0)


def checked(vector: Contribution, users: int) -> Floats:
    """The sum that is to be released, as float64 [P]; for the coordinator.

    Raises:
        PrivacyRefused: it is not one finite vector, or no user is behind it.
    """
    values = np.asarray(vector, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise PrivacyRefused(
            f"sum of updates of shape {values.shape}: expected one vector of finite numbers; nothing was released"
        )
    if users < 0 or (users == 0 and values.any()):
        raise PrivacyRefused(
            f"sum of updates of {users} users is not zero: expected the number of users in it"
        )
    return values
