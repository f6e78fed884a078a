"""One concern of a round, with the half that runs where users are and the half that runs on the server.

A round is a chain of stages around one sum. The stages run in list order on users and nodes and in reverse order on
the server:

    update ─▶ on_user … on_user ─▶ sum ─▶ on_node … on_node ─▶ written, carried, read ─▶ aggregation rule ─▶ ─┐
    applied ◀─ on_server … on_server (last stage first) ◀──────────────────────────────────────────────────────┘

A stage declares by `layout` what of the vector is sent, and by `sensitivity` how far one unit (a user, or an
interaction) can then move the sum; both compose along the list, so noise is sized by the chain in which it stands. A
stage is frozen: what it remembers from round to round on the server is a `State` that is handed in and out and is
stored with the coordinator's checkpoint; what it remembers of its users is a `State` of arrays [U, ...] that stays on
the node.

Letters: U users of a batch, I items, n values of a flat vector, C clip norm.
Out of scope: which stages a run has (`fedrec.rounds.chain`, `fedrec.privacy.mechanisms`), and what carries replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.messages import Scalar
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import BlockSpec, Floats, Layout, State, Updates, UpdateSum, finite

#: The block under which a sum is found once it has been flattened into one vector.
VECTOR = "update"
#: Prefix of what stages announce, in the fields of a request.
ANNOUNCED = "stage/"


class Noise(Protocol):
    """A source of secret randomness (`fedrec.privacy.noise.NoiseSource`)."""

    def derive(self, *labels: str | int) -> Self:
        """A source of its own for these labels."""

    def uniform(self, size: int) -> Floats:
        """[size] uniforms in [0, 1)."""

    def bernoulli(self, p: float, size: int) -> NDArray[np.bool_]:
        """[size] draws that are true with probability p."""

    def normal(self, size: int, std: float) -> Floats:
        """[size] normals of mean 0."""

    def skellam(self, size: int, variance: float) -> NDArray[np.int64]:
        """[size] symmetric Skellam integers."""


@dataclass(frozen=True)
class Bound:
    """How far the sum can move when one unit's contribution is replaced by zero.

    Attributes:
        l2: L2 norm of the move of the update's values; infinite where nothing bounds it.
        count: move of the values that a stage adds beside the update (adaptive clipping's count), which are noised
            on their own terms; 0: there are none.
        steps: of a grid on which all values of the sum lie (integer steps per unit); 0: they are real numbers.
            `l2` is in units of the update in both cases.
    """

    l2: float = np.inf
    count: float = 0.0
    steps: float = 0.0


@dataclass(frozen=True)
class RoundContext:
    """What is the same for all stages in one round.

    Attributes:
        round: from 1.
        seed: of the run's public draws.
        n_items: I.
        layout: of the vector as it is sent, after all stages.
        bound: how far one unit can move the sum that arrives, after all stages.
        announced: what stages said to nodes of their server states (`Stage.announce`), by stage name.
        noise: the source of this round, of the node or of the coordinator; None where a chain draws none.
    """

    round: int
    seed: int = 0
    n_items: int = 0
    layout: Layout = field(default_factory=lambda: Layout({}))
    bound: Bound = Bound()
    announced: Mapping[str, Scalar] = field(default_factory=dict)
    noise: Noise | None = None


@dataclass(slots=True)
class UserUpdates:
    """The updates of U users on their way through the stages; nothing is copied until they are summed.

    A stage hands on another object and leaves the one that it got as it is.

    Attributes:
        updates: as the recommender made them, or as the last stage left them.
        users: [U] keys of the users.
        where: [U] their rows in the states of stages on the node.
        scale: [U] by which each update is multiplied when it is summed; 0 leaves a user out.
        factor: [U] what clipping has multiplied each update by, whether it is part of `scale` still or done already.
        norms: [U] L2 norms before clipping, 0 where an update is not finite.
        clipped, zeroed: how many were scaled down, and how many count as zero because they are not finite.
        wire: of a single user, the arrays in which the update is sent where that is not its flat vector.
    """

    updates: Updates
    users: IntArray
    where: IntArray
    scale: Floats
    factor: Floats
    norms: Floats
    clipped: int = 0
    zeroed: int = 0
    wire: State | None = None

    @classmethod
    def of(cls, updates: Updates, users: IntArray, where: IntArray) -> Self:
        """Updates as they come from a recommender."""
        ones = np.ones(updates.n_users)
        return cls(updates, users, where, ones, ones, np.zeros(updates.n_users))

    def add_into(self, total: UpdateSum) -> None:
        """Add them, and the numbers that are reported with them, to a sum of the same blocks."""
        self.updates.add_into(total.blocks, self.scale)
        total.users += self.updates.n_users
        total.clipped += self.clipped
        total.zeroed += self.zeroed
        total.norm += finite(self.norms)


@dataclass(frozen=True)
class DenseBlock:
    """The contribution of a single user to one block, written out.

    Attributes:
        values: of the block's shape.
        spec: of the whole block.
    """

    values: NDArray[np.floating]
    spec: BlockSpec

    def squared_norms(self) -> Floats:
        """[1] squared L2 norm; of a symmetric matrix the upper triangle counts."""
        packed = self.spec.pack(self.values)
        return np.array([np.vdot(packed, packed)], dtype=np.float64)

    def add_into(self, total: Floats, scale: Floats) -> None:
        """Add the values times `scale` [1]; a scale of 0 leaves them out, NaN or not."""
        if scale[0] == 1.0:
            total += self.values
        elif scale[0] != 0.0:
            total += self.values * scale[0]


class Stage:
    """Base of all stages: does nothing and conflicts with nothing. Subclasses are frozen dataclasses."""

    #: Unique within a chain; also the prefix of the stage's states and the key of what it announces.
    name: ClassVar[str] = "stage"
    #: Needs every user's dense vector: users are then handed to the chain one by one.
    dense: ClassVar[bool] = False

    def init(self) -> State:
        """The server's state before round 1: arrays of at least one axis, by name."""
        return {}

    def init_users(self, layout: Layout, n_items: int, users: int) -> State:
        """Arrays [U, ...] that a node keeps for its users, as before round 1."""
        return {}

    def announce(self, context: RoundContext, state: State) -> Scalar | None:
        """What nodes must know of the server's state in this round; it is public. None: nothing."""
        return None

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """What is sent, of what would be sent without this stage.

        Raises:
            ProtocolError: what was announced is not valid.
        """
        return layout

    def sensitivity(self, bound: Bound, context: RoundContext) -> Bound:
        """How far one unit moves the sum after this stage, when it moves it by `bound` before it."""
        return bound

    def on_history(self, batch: UserBatch) -> UserBatch:
        """Histories as this stage needs them before anything is computed."""
        return batch

    def on_user(self, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        """The updates after this stage; vectorised over the users, `state` [U of the node, ...] changed in place."""
        return updates

    def on_sent(self, before: UserUpdates, sent: UserUpdates, context: RoundContext, state: State) -> None:
        """Remember, in `state`, what of `before` (this stage's own result) was not in what was sent after all."""

    def on_node(self, total: UpdateSum, context: RoundContext) -> UpdateSum:
        """The node's sum after this stage. `total.users` counts all who take part, those with a zero update too."""
        return total

    def on_server(self, total: UpdateSum, context: RoundContext, state: State) -> tuple[UpdateSum, State]:
        """The sum over all nodes with this stage undone, and the stage's next state; the given one stays as it is.

        Raises:
            PrivacyRefused: too little noise is in the sum; nothing of it may be released.
        """
        return total, state

    def facts(self, context: RoundContext) -> Mapping[str, Any]:
        """What is public and belongs into the record of the round."""
        return {}

    def conflicts(self, others: Sequence[Stage]) -> list[str]:
        """What it cannot stand beside, one line for the user each: what is set, and what to set instead."""
        return []


class UserStages(Protocol):
    """The users' half of a chain in one round, as local training sees it."""

    @property
    def context(self) -> RoundContext:
        """Of the round, on this node."""

    def add(self, total: UpdateSum, updates: Updates, users: IntArray, where: IntArray) -> None:
        """Add updates to the node's sum, each as the stages leave it.

        Args:
            total: in the blocks of the recommender's layout; changed in place.
            updates: U users.
            users: [U] their keys.
            where: [U] their rows in the states of stages.
        """


class LocalTraining(Protocol):
    """How a node gets from histories to the sum of its users' updates."""

    def train(
        self,
        recommender: Recommender,
        shared: State,
        local: State,
        batch: UserBatch,
        seed: RoundSeed,
        stages: UserStages,
    ) -> tuple[UpdateSum, State]:
        """The sum over all users of the batch, and their new personal state.

        Args:
            recommender: the model.
            shared: the broadcast state.
            local: arrays [U, ...] of the users of the batch.
            batch: their histories.
            seed: of the round's public draws.
            stages: through which updates are added.
        """

    def replacement(
        self,
        recommender: Recommender,
        shared: State,
        local: State,
        batch: UserBatch,
        seed: RoundSeed,
        stages: UserStages,
    ) -> tuple[UpdateSum, State]:
        """What stands for the result when it cannot be computed; it must not depend on the histories."""


class AggregationRule(Protocol):
    """What makes one sum of the replies that came."""

    #: True where single replies are looked at: refused beside secure aggregation.
    sees_replies: ClassVar[bool]

    def combine(self, zero: UpdateSum, replies: Sequence[UpdateSum]) -> UpdateSum:
        """The sum that the round continues with.

        Args:
            zero: a sum over no users, of the same blocks.
            replies: one sum per node, `users` behind each: arrays by name, all of the same shapes.
        """

    def sensitivity(self, bound: Bound) -> Bound:
        """How far one unit moves the result when it moves one reply by `bound`; infinite where nothing is known."""


@dataclass(frozen=True)
class Sum:
    """The sum of all replies: every user counts alike, and one unit moves it as far as its reply."""

    sees_replies: ClassVar[bool] = False

    def combine(self, zero: UpdateSum, replies: Sequence[UpdateSum]) -> UpdateSum:
        """See `AggregationRule`."""
        for reply in replies:
            zero.merge(reply)
        return zero

    def sensitivity(self, bound: Bound) -> Bound:
        """The bound itself."""
        return bound


def announced_in(meta: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What stages announced by the fields of a request, by stage name."""
    return {name.removeprefix(ANNOUNCED): value for name, value in meta.items() if name.startswith(ANNOUNCED)}
