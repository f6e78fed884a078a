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

from dataclasses import replace
from math import ceil
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.core.errors import ProtocolError
from fedrec.core.interactions import IntArray
from fedrec.core.randomness import Purpose, key, normal, uniform, user_keys
from fedrec.core.updates import Floats, Layout, State, Updates, UpdateSum, finite

#: What the server keeps between rounds beside its optimiser's state.
RATE, SENT = "compression/rate", "compression/sent"
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

    def payload(self, size: int) -> int:
        """Bytes of an update of so many values."""
        return 4 * size if self.bits is None else ceil(size * self.bits / 8) + 4


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


class Compressor:
    """Adds updates to a sum as a server would read them, each user's on its own.

    Args:
        compression: what is done.
        layout: of the round.
        carried: arrays [U, ...] of what users have not sent yet, changed in place; empty without feedback.
        seed: of the rounding, with the round.
        round_: from 1.

    Attributes:
        carried: as given, after `add` what is left.
        last: what the last user sent, where it was quantised.
    """

    def __init__(
        self, compression: Compression, layout: Layout, carried: State, seed: int, round_: int
    ) -> None:
        self._compression, self._layout, self.carried = compression, layout, carried
        self._base = key(seed, Purpose.ROUNDING, round_)
        self.last: Quantised | None = None

    def add(
        self, total: UpdateSum, updates: Updates, where: IntArray, users: IntArray, clip_norm: float | None
    ) -> None:
        """Add the updates of `users` (keys), whose rows of `carried` are `where`; one not finite counts as zero."""
        for k in range(updates.n_users):
            blocks = self._layout.zeros()
            updates.add_into(blocks, np.eye(1, updates.n_users, k)[0])
            for name, kept in self.carried.items():
                blocks[name] += kept[where[k]]
            norm = float(np.sqrt(sum(np.vdot(values, values) for values in self._halves(blocks))))
            if not np.isfinite(norm):
                blocks, norm = self._layout.zeros(), 0.0
                total.zeroed += 1
            scale = 1.0 if clip_norm is None else clip_norm / max(norm, clip_norm)
            sent = self._sent(self._layout.flatten(blocks) * scale, users[k], clip_norm)
            for name, values in self._layout.unflatten(sent).items():
                total.blocks[name] += values
                if name in self.carried:
                    self.carried[name][where[k]] = blocks[name] * scale - values
            total.clipped += int(clip_norm is not None and norm > clip_norm)
            total.norm += norm
        total.users += updates.n_users
        total.loss += finite(updates.loss)
        total.examples += finite(updates.examples)

    def nothing(self) -> Quantised:
        """What a user without anything to send sends, in the same form as everyone else."""
        assert self._compression.bits is not None
        return Quantised(np.zeros(self._layout.size, dtype=np.int8), 0.0, self._compression.bits)

    def _halves(self, blocks: dict[str, Floats]) -> list[NDArray[np.floating]]:
        """All values, once each: of a symmetric matrix the upper triangle."""
        return [
            replace(spec, rows=None, basis=None).pack(blocks[name])
            for name, spec in self._layout.blocks.items()
        ]

    def _sent(self, values: NDArray[np.floating], user: int, clip_norm: float | None) -> NDArray[np.floating]:
        if self._compression.bits is None:
            return values
        stream = user_keys(self._base, np.array([user], dtype=np.int64))
        self.last = quantise(values, self._compression.bits, uniform(stream, len(values))[0], clip_norm)
        return self.last.values()


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
