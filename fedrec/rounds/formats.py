"""How a node's sum becomes a reply, and how a server reads it: the last step of a chain before what carries replies.

    ClearFormat    float32 values and the numbers that are reported of them; in a reply that is not summed with
                   others, what a map of the layout left out is put back as soon as it is read, since maps are linear
    LevelsFormat   the same, or the few-bit levels of a node that hosts a single user
    VectorFormat   the flat vector of a private chain and the number of users behind it, nothing else

What does not follow the format costs its own update, not the round. Letters: n values of the flat vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Reply, Scalar
from fedrec.core.stage import VECTOR, RoundContext, UserUpdates
from fedrec.core.updates import NUMBERS, Layout, State, UpdateSum
from fedrec.privacy.adaptive import COUNT
from fedrec.privacy.mechanism import Mechanism
from fedrec.rounds.compression import Quantise, Quantised

#: Room for float32 rounding of a sum whose norm is at the bound, and for that of float64.
NORM_SLACK, EXACT_SLACK = 1.0 + 1e-4, 1.0 + 1e-9


class Format(Protocol):
    """See the module's text."""

    #: Scalars of a reply.
    names: ClassVar[tuple[str, ...]]

    def write(
        self, total: UpdateSum, context: RoundContext, last: UserUpdates | None, hosted: int
    ) -> tuple[State, dict[str, Scalar]]:
        """Arrays and scalars of a reply.

        Args:
            total: of the node, after all stages.
            context: of the round.
            last: what the last user of the node sent.
            hosted: how many users the node has, in this round's cohort or not.
        """

    def read(self, reply: Reply, hosted: int, context: RoundContext, *, summed: bool) -> UpdateSum:
        """What came.

        Args:
            reply: of a node, or the sum that secure aggregation gave.
            hosted: the most users that can be behind it.
            context: of the round.
            summed: the devices saw to the bound; rounding can take their sum past it.

        Raises:
            ProtocolError: keys, shapes, types, finiteness, the number of users or the norm are not as declared.
        """

    def zero(self, context: RoundContext) -> UpdateSum:
        """The sum over no users, in the blocks that `read` gives."""

    def example(self, context: RoundContext) -> Mapping[str, NDArray[Any]]:
        """Arrays of a reply, of which types and shapes count."""

    def payload(self, context: RoundContext) -> int:
        """Bytes that a user who is alone on a node sends."""

    def describe(self, total: UpdateSum, context: RoundContext) -> dict[str, Any]:
        """What may be said of the sum that is applied."""


@dataclass(frozen=True)
class ClearFormat:
    """Sums without a privacy plan.

    Attributes:
        clip_norm: C, or None.
    """

    names: ClassVar[tuple[str, ...]] = NUMBERS

    clip_norm: float | None = None

    def write(
        self, total: UpdateSum, context: RoundContext, last: UserUpdates | None, hosted: int
    ) -> tuple[State, dict[str, Scalar]]:
        """The declared values as float32, and the numbers."""
        arrays: State = {VECTOR: as_float32(context.layout.flatten(total.blocks))}
        return arrays, dict(total.numbers())

    def read(self, reply: Reply, hosted: int, context: RoundContext, *, summed: bool) -> UpdateSum:
        """See `Format`; in blocks of whole shape."""
        return read_update(reply, context.layout, hosted, self.clip_norm, summed=summed)

    def zero(self, context: RoundContext) -> UpdateSum:
        """Blocks of whole shape."""
        return UpdateSum(context.layout.zeros())

    def example(self, context: RoundContext) -> Mapping[str, NDArray[Any]]:
        """[n] float32."""
        return {VECTOR: np.zeros(context.layout.size, dtype=np.float32)}

    def payload(self, context: RoundContext) -> int:
        """4 bytes a value."""
        return 4 * context.layout.size

    def describe(self, total: UpdateSum, context: RoundContext) -> dict[str, Any]:
        """Loss, norms and how many were clipped."""
        users = max(total.users, 1)
        return {
            "users": total.users,
            "loss": total.loss / max(total.examples, 1.0),
            "clipped_fraction": total.clipped / users,
            "mean_norm": total.norm / users,
        } | ({"zeroed_updates": total.zeroed} if total.zeroed else {})


@dataclass(frozen=True)
class LevelsFormat(ClearFormat):
    """Sums of updates that were quantised; a single user's needs no float32 around its levels.

    Attributes:
        quantise: the stage that did it.
    """

    quantise: Quantise = field(default_factory=Quantise)

    def write(
        self, total: UpdateSum, context: RoundContext, last: UserUpdates | None, hosted: int
    ) -> tuple[State, dict[str, Scalar]]:
        """Levels and scale of a single user, whether or not in this round's cohort; otherwise float32."""
        arrays, numbers = super().write(total, context, last, hosted)
        if hosted != 1:
            return arrays, numbers
        sent = None if last is None else last.wire
        return self.quantise.nothing(context.layout.size) if sent is None else sent, numbers

    def read(self, reply: Reply, hosted: int, context: RoundContext, *, summed: bool) -> UpdateSum:
        """See `Format`; levels become values first."""
        if set(reply.arrays) == {"levels", "scale"}:
            found = Quantised.unpack(reply.arrays, context.layout.size, self.quantise.bits)
            reply = replace(reply, arrays={VECTOR: found.values().astype(np.float32)})
        return super().read(reply, hosted, context, summed=summed)

    def payload(self, context: RoundContext) -> int:
        """The levels, and 4 bytes of their scale."""
        return self.quantise.payload(context.layout.size)


@dataclass(frozen=True)
class VectorFormat:
    """Sums of a private chain.

    Attributes:
        mechanism: the last stage of the chain.
    """

    names: ClassVar[tuple[str, ...]] = ("users",)

    mechanism: Mechanism

    def write(
        self, total: UpdateSum, context: RoundContext, last: UserUpdates | None, hosted: int
    ) -> tuple[State, dict[str, Scalar]]:
        """The contribution as it is, and the number of users."""
        return {VECTOR: total.blocks[VECTOR]}, {"users": int(total.users)}

    def read(self, reply: Reply, hosted: int, context: RoundContext, *, summed: bool) -> UpdateSum:
        """See `Format`; the vector as it came."""
        if set(reply.arrays) != {VECTOR} or set(reply.meta) != {"users"}:
            raise ProtocolError(
                f"reply has {sorted(reply.arrays)} and {sorted(reply.meta)}: expected 'update' and 'users'"
            )
        users, sent = reply.meta["users"], reply.arrays[VECTOR]
        if not isinstance(users, int) or not 0 <= users <= hosted:
            raise ProtocolError(f"reply speaks for {users!r} users: the node hosts {hosted}")
        like = self.mechanism.zero(context.layout.size)
        if sent.dtype != like.dtype or sent.shape != like.shape:
            raise ProtocolError(f"update is {sent.dtype}{sent.shape}: expected {like.dtype}{like.shape}")
        if sent.dtype.kind == "f" and not np.isfinite(sent).all():
            raise ProtocolError("update is not finite: expected finite numbers")
        if self.mechanism.sends_clean_sums and not summed:
            check_bound(sent, users, context)
        return UpdateSum({VECTOR: sent}, users)

    def zero(self, context: RoundContext) -> UpdateSum:
        """The mechanism's own."""
        return UpdateSum({VECTOR: self.mechanism.zero(context.layout.size)})

    def example(self, context: RoundContext) -> Mapping[str, NDArray[Any]]:
        """A contribution of no users."""
        return {VECTOR: self.mechanism.zero(context.layout.size)}

    def payload(self, context: RoundContext) -> int:
        """8 bytes a value."""
        return 8 * context.layout.size

    def describe(self, total: UpdateSum, context: RoundContext) -> dict[str, Any]:
        """What follows from the release alone."""
        return {"noise_std": total.noise_std, "signal_to_noise": signal_to_noise(total, context.layout)}


def check_bound(sent: NDArray[np.generic], users: int, context: RoundContext) -> None:
    """Raises ProtocolError where a clean sum is longer than its users' updates can be.

    Without its norm: the reason goes into the records, which hold no number that has no noise.
    """
    bound, values = context.bound, sent.astype(np.float64)
    if bound.count:
        count, values = values[-1], values[:-1]
        if abs(float(count)) > users * bound.count:
            raise ProtocolError("the count of unclipped updates is impossible: expected at most all users")
    most = users * bound.l2 * EXACT_SLACK
    if float(np.linalg.norm(values)) > most:
        raise ProtocolError(f"the norm of an update of {users} users: expected at most {most:.4g}")


def signal_to_noise(released: UpdateSum, layout: Layout) -> float | None:
    """Estimated |sum| / |noise| from the noised sum alone: E|S + Z|² = |S|² + P σ²; 0 where noise prevails.

    None where the noise is not known here, or there is none.
    """
    own = Layout({name: spec for name, spec in layout.blocks.items() if name != COUNT})
    noise = own.size * released.noise_std**2
    if noise == 0.0:
        return None
    flat = own.flatten(released.blocks).astype(np.float64)
    return math.sqrt(max(float(flat @ flat) - noise, 0.0) / noise)


def read_update(
    reply: Reply,
    layout: Layout,
    hosted_users: int,
    clip_norm: float | None,
    *,
    summed: bool = False,
) -> UpdateSum:
    """What a train reply without a privacy plan says.

    Args:
        reply: of a node, or the sum that secure aggregation gave.
        layout: of the round.
        hosted_users: the most users that can be behind it.
        clip_norm: C, or None.
        summed: the devices saw to the bound; rounding can take their sum past it.

    Raises:
        ProtocolError: keys, shape, type, finiteness, the number of users or the norm are not as declared.
    """
    if set(reply.arrays) != {VECTOR}:
        raise ProtocolError(f"reply has arrays {sorted(reply.arrays)}: expected only 'update'")
    if set(reply.meta) != set(NUMBERS):
        raise ProtocolError(f"reply has fields {sorted(reply.meta)}: expected {sorted(NUMBERS)}")
    update = reply.arrays[VECTOR]
    if summed:
        update = update.astype(np.float32)
    if update.dtype != np.float32 or update.shape != (layout.size,):
        raise ProtocolError(f"update is {update.dtype}{update.shape}: expected float32({layout.size},)")
    users, numbers = _numbers(reply, hosted_users)
    norm = float(np.linalg.norm(update.astype(np.float64)))
    if not math.isfinite(norm):
        raise ProtocolError("update is not finite: expected finite numbers")
    if clip_norm is not None and not summed and norm > users * clip_norm * NORM_SLACK:
        raise ProtocolError(
            f"update of norm {norm:.4g} for {users:g} users: expected at most {users * clip_norm:.4g}"
        )
    blocks = {name: values.astype(np.float64) for name, values in layout.unflatten(update).items()}
    return UpdateSum(
        blocks,
        users,
        numbers["loss"],
        numbers["examples"],
        int(numbers["clipped"]),
        numbers["norm"],
        int(numbers["zeroed"]),
    )


def _numbers(reply: Reply, hosted_users: int) -> tuple[int, dict[str, float]]:
    """How many users a reply speaks for, and its numbers."""
    given = {name: reply.meta[name] for name in NUMBERS}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in given.values()):
        raise ProtocolError("a number of the reply is not finite: expected finite numbers")
    numbers = {name: float(value) for name, value in given.items()}
    users = numbers["users"]
    if users != int(users) or not 0 <= users <= hosted_users:
        raise ProtocolError(f"reply speaks for {users:g} users: the node hosts {hosted_users}")
    counts = [numbers[name] for name in ("clipped", "zeroed")]
    if not all(0 <= count <= users for count in counts) or numbers["examples"] < 0:
        raise ProtocolError(
            "reply has impossible counts: expected 0 <= clipped, zeroed <= users and examples >= 0"
        )
    return int(users), numbers


def as_float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The same as float32, within its range; what is not finite is zero."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(np.where(np.isfinite(values), values, 0.0), -largest, largest).astype(np.float32)
