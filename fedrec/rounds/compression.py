"""Less on the wire: low rank, the rows that matter, few bits. What is left out is public and the same for everyone.

Sums must stay sums and no index may tell what a user touched, so an update is only ever mapped linearly, by a map
that follows from the run's public seed and from earlier *sums*, never from a user's data:

* **rank**: a row of an item table, [d], is sent as its product with a public orthonormal basis [d, r], another one in
  each round (a random sketch; Konečný et al. 2016, "Federated learning: strategies for improving communication
  efficiency", arXiv:1610.05492);
* **rows**: the server names the rows of a round: those in which, by the sums it has seen, most has been waiting
  longest. With `feedback` a device keeps what it did not send and adds it to its next update, before clipping, so the
  bound holds (error feedback: Seide et al. 2014, Interspeech; Karimireddy et al. 2019, ICML);
* **bits**: values become 4- or 8-bit integers of a scale of their own, rounded at random so that the mean of many is
  right (Alistarh et al. 2017, QSGD, NeurIPS). The scale is then lowered where rounding has made the update longer
  than C. Integers of different scales have no sum, so this is for replies that are sealed or plain; under secure
  aggregation `secagg.bits` says how few bits the summed integers have.

The maps never lengthen an update: bounds and noise stay as planned. Only gradients can be sent in parts.

Letters: U users, I items, d embedding size, r rank. Out of scope: hiding what is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.core.errors import ProtocolError
from fedrec.core.interactions import IntArray
from fedrec.core.randomness import Purpose, key, normal, uniform, user_keys
from fedrec.core.stage import DenseBlock, RoundContext, Stage, UserUpdates
from fedrec.core.updates import Floats, Layout, State, Updates, UpdateSum

#: What the server remembers of each row: how fast it moves, and when it was sent last.
RATE, SENT = "rate", "sent"
#: A row of which nothing was heard waits as if it moved at so much of the mean rate: none is forgotten for good.
LEAST_RATE = 0.02
#: Updates below it, of which float32 cannot hold a step, are zero.
TINY = 1e-36


class Compression(BaseModel):
    """How updates are made smaller; the same on every node of a run.

    Attributes:
        rank: r, values that are sent of each row of an item table; None: all d.
        rows: part of the rows of item tables that is sent in a round; None: all.
        feedback: a device keeps what was not sent and adds it next time; costs it a copy of the tables.
        bits: of a value on the wire; None: 32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int | None = Field(default=None, ge=1)
    rows: float | None = Field(default=None, gt=0, lt=1)
    feedback: bool = False
    bits: Literal[4, 8] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.feedback and self.rows is None and self.rank is None:
            raise ValueError("compression.feedback keeps what rows or rank leave out: set one of them")
        return self


def sketched(layout: Layout, n_items: int, rank: int, seed: int, round_: int) -> Layout:
    """The layout whose item tables are sent in `rank` values a row; narrower tables stay as they are."""
    blocks = dict(layout.blocks)
    for position, (name, spec) in enumerate(layout.blocks.items()):
        if spec.is_table(n_items) and len(spec.shape) == 2 and spec.shape[1] > rank:
            stream = user_keys(key(seed, Purpose.SKETCH, round_), np.array([position], dtype=np.int64))
            noise = normal(stream, spec.shape[1] * rank)[0].reshape(spec.shape[1], rank)
            blocks[name] = replace(spec, basis=np.linalg.qr(noise)[0])
    return Layout(blocks)


def rows_count(n_items: int, part: float) -> int:
    """How many rows are sent in a round."""
    return max(1, round(n_items * part))


def choose_rows(server: State, n_items: int, part: float, round_: int) -> IntArray:
    """The rows of a round, rising: where rate times rounds of waiting is largest, rows never sent first."""
    count = rows_count(n_items, part)
    rate = server.get(RATE, np.full(n_items, np.inf))
    waited = round_ - server.get(SENT, np.zeros(n_items, dtype=np.int64))
    known = np.isfinite(rate)
    floor = LEAST_RATE * float(rate[known].mean()) if known.any() else 0.0
    waiting = np.maximum(rate, floor) * waited
    return np.sort(np.argsort(-waiting, kind="stable")[:count]).astype(np.int64)


def note_rows(server: State, total: UpdateSum, n_items: int, rows: IntArray, round_: int) -> State:
    """What the server remembers of a round's sum for `choose_rows`."""
    rate = server.get(RATE, np.full(n_items, np.inf)).copy()
    sent = server.get(SENT, np.zeros(n_items, dtype=np.int64)).copy()
    square = np.zeros(n_items)
    for values in total.blocks.values():
        if values.shape[0] == n_items:
            square += np.square(values).reshape(n_items, -1).sum(axis=1)
    rate[rows] = np.sqrt(square[rows]) / np.maximum(round_ - sent[rows], 1)
    sent[rows] = round_
    return {RATE: rate, SENT: sent}


@dataclass(frozen=True)
class LowRank(Stage):
    """Sends a row of an item table as its product with the round's public basis; narrower tables stay as they are.

    Attributes:
        rank: r.
    """

    name = "low_rank"

    rank: int = 1

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """The layout with a basis for each table; an orthonormal one lengthens nothing."""
        return sketched(layout, context.n_items, self.rank, context.seed, context.round)


@dataclass(frozen=True)
class Feedback(Stage):
    """Error feedback: what a user did not send is added to the next update, before clipping.

    Its state on the node is that remainder, [U, I, ...] for each item table.
    """

    name = "feedback"
    dense = True

    def init_users(self, layout: Layout, n_items: int, users: int) -> State:
        """Nothing is left from before."""
        return {
            name: np.zeros((users, *spec.shape), dtype=np.float32)
            for name, spec in layout.blocks.items()
            if spec.is_table(n_items)
        }

    def on_user(self, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        """The update with what is left of earlier ones."""
        blocks = dense_blocks(updates)
        for name, kept in state.items():
            blocks[name].values[...] += kept[updates.where[0]]
        return updates

    def on_sent(self, before: UserUpdates, sent: UserUpdates, context: RoundContext, state: State) -> None:
        """Keep what clipping left and the stages after it did not send; of an update that is not finite, nothing."""
        whole, values, factor = dense_blocks(before), dense_blocks(sent), sent.factor[0]
        for name, kept in state.items():
            left = whole[name].values * factor if factor else 0.0
            kept[before.where[0]] = left - values[name].values

    def conflicts(self, others: Sequence[Stage]) -> list[str]:
        """It has to see what is sent of every single user."""
        if any(isinstance(stage, Project) for stage in others):
            return []
        return [
            "error feedback needs each user's update as it is sent: add a stage that projects or quantises it"
        ]


@dataclass(frozen=True)
class Project(Stage):
    """Each user's update as the server would read it: the declared part of it, written out."""

    name = "project"
    dense = True

    def on_user(self, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        """The update that arrives, and the arrays in which it is sent."""
        blocks, scale = dense_blocks(updates), updates.scale[0]
        layout = Layout({name: spec for name, spec in context.layout.blocks.items() if name in blocks})
        flat = layout.flatten({name: block.values for name, block in blocks.items()}) if scale else None
        values, wire = self.sent(np.zeros(layout.size) if flat is None else flat * scale, updates, context)
        arrived = {
            name: DenseBlock(part, blocks[name].spec) for name, part in layout.unflatten(values).items()
        }
        return replace(updates, updates=replace(updates.updates, blocks=arrived), scale=np.ones(1), wire=wire)

    def sent(
        self, values: NDArray[np.floating], updates: UserUpdates, context: RoundContext
    ) -> tuple[NDArray[np.floating], State | None]:
        """[n] the values as they arrive, and the arrays of the wire; None: the values."""
        return values, None


@dataclass(frozen=True)
class Quantise(Project):
    """Values become integers of few bits and a scale; the scale is lowered where rounding led beyond the bound.

    Attributes:
        bits: 4 or 8.
    """

    name = "quantise"

    bits: int = 8

    def sent(
        self, values: NDArray[np.floating], updates: UserUpdates, context: RoundContext
    ) -> tuple[NDArray[np.floating], State | None]:
        """[n] the values of the levels, and the levels."""
        stream = user_keys(key(context.seed, Purpose.ROUNDING, context.round), updates.users)
        draws = uniform(stream, len(values))[0]
        bound = context.bound.l2 if isfinite(context.bound.l2) else None
        found = quantise(values, self.bits, draws, bound)
        return found.values(), found.pack()

    def payload(self, size: int) -> int:
        """Bytes of the levels of so many values, and of their scale."""
        return ceil(size * self.bits / 8) + 4

    def nothing(self, size: int) -> State:
        """What a user without an update sends, in the same form as all others."""
        return Quantised(np.zeros(size, dtype=np.int8), 0.0, self.bits).pack()


def dense_blocks(updates: UserUpdates) -> dict[str, DenseBlock]:
    """The blocks of a single user who was handed on by a stage that asked for dense vectors."""
    found = {}
    for name, block in updates.updates.blocks.items():
        assert isinstance(block, DenseBlock), name
        found[name] = block
    return found


def written_out(updates: UserUpdates, layout: Layout) -> Iterator[UserUpdates]:
    """Each user alone, as dense blocks of the whole layout, in list order."""
    whole = updates.updates
    for k in range(whole.n_users):
        blocks = layout.zeros()
        whole.add_into(blocks, np.eye(1, whole.n_users, k)[0])
        dense = {name: DenseBlock(values, layout.blocks[name]) for name, values in blocks.items()}
        one = Updates(dense, 1)
        here = slice(k, k + 1)
        yield UserUpdates.of(one, updates.users[here], updates.where[here])


class Quantised:
    """A vector of integers of few bits and their scale.

    Attributes:
        levels: [n] int8, from -(2^(bits-1) - 1) to 2^(bits-1) - 1.
        scale: of one step.
        bits: 4 or 8.
    """

    def __init__(self, levels: NDArray[np.int8], scale: float, bits: int) -> None:
        self.levels, self.scale, self.bits = levels, np.float32(scale), bits

    def values(self) -> Floats:
        """[n]."""
        return self.levels.astype(np.float64) * float(self.scale)

    def pack(self) -> dict[str, NDArray[Any]]:
        """As it is sent: two 4-bit values in a byte, the first one low."""
        raw = self.levels.view(np.uint8)
        if self.bits == 4:
            raw = np.pad(raw & np.uint8(15), (0, len(raw) % 2))
            raw = raw[0::2] | (raw[1::2] << np.uint8(4))
        return {"levels": raw, "scale": np.array([self.scale], dtype=np.float32)}

    @classmethod
    def unpack(cls, arrays: State, size: int, bits: int) -> Quantised:
        """What `pack` gave.

        Raises:
            ProtocolError: types, lengths or values are not such.
        """
        raw, scale = arrays["levels"], arrays["scale"]
        expected = ceil(size * bits / 8)
        if raw.dtype != np.uint8 or raw.shape != (expected,):
            raise ProtocolError(f"levels are {raw.dtype}{raw.shape}: expected uint8({expected},)")
        if scale.dtype != np.float32 or scale.shape != (1,) or not np.isfinite(scale[0]) or scale[0] < 0:
            raise ProtocolError("the scale of the levels is not one finite float32 of at least 0")
        if bits == 4:
            halves = np.stack([raw & np.uint8(15), raw >> np.uint8(4)], axis=1).reshape(-1)[:size]
            raw = np.where(halves > 7, halves | np.uint8(240), halves).astype(np.uint8)
        return cls(raw.view(np.int8), float(scale[0]), bits)


def quantise(
    values: NDArray[np.floating], bits: int, draws: Floats, clip_norm: float | None = None
) -> Quantised:
    """Integers whose mean over `draws` is right, with a scale from the largest value.

    Args:
        values: [n].
        bits: 4 or 8.
        draws: [n] uniforms in [0, 1).
        clip_norm: L2 bound of the result, or None; where it binds the scale is lowered, and the mean with it.
    """
    top = float(2 ** (bits - 1) - 1)
    largest = float(np.abs(values).max(initial=0.0))
    if largest < TINY:
        return Quantised(np.zeros(len(values), dtype=np.int8), 0.0, bits)
    step = largest / top
    levels = np.clip(np.floor(values / step + draws), -top, top)
    norm = step * float(np.linalg.norm(levels))
    if clip_norm is not None and norm > clip_norm:
        step *= clip_norm / norm
    return Quantised(levels.astype(np.int8), step, bits)
