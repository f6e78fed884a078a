"""From real numbers to residues modulo 2^16 or 2^32, and from their sum back.

A vector is [values | numbers]. Values are scaled, optionally rotated first, and rounded at random so that no sum is
biased: floor(x + u), u uniform in [0, 1). The scale follows from the modulus for *aligned* clients, all at their
bound and in one direction; sizing it for independent ones wraps around as soon as clients agree, which is what
learning makes them do. Numbers are exact fixed-point numbers in small limbs, so that carries of a sum never meet.

Letters: m length, b bits. Out of scope: masks, clipping, noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.rotation import Rotation, padded_size, tail

Floats = NDArray[np.float64]
Residues = NDArray[np.unsignedinteger[Any]]
Uniform = Callable[[int], Floats]

#: Fixed point of the numbers: 2^-20 units, up to 2^42.
UNIT_BITS = 20
_RANGE = 2.0**42
#: Scaled values below it have exact integers around them.
_EXACT = 2.0**52
_BLOCK = 1 << 15
#: Standard deviations of noise that the integers have room for.
_TAILS = 8.0


@dataclass(frozen=True)
class Encoding:
    """How one vector is carried.

    Attributes:
        size: number of values.
        bits: b.
        scale: integer steps per unit.
        numbers: how many exact numbers follow.
        rotation: public seed of a rotation; None: none.
    """

    size: int
    bits: Literal[16, 32]
    scale: float
    numbers: int = 0
    rotation: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of residues: little endian on every machine."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def carried(self) -> int:
        """Residues that the values take."""
        return self.size if self._rotation is None else self._rotation.padded

    @property
    def length(self) -> int:
        """m."""
        return self.carried + self.numbers * self._limbs

    def encode(self, values: Floats, numbers: Floats, uniform: Uniform) -> Residues:
        """[m] residues.

        Args:
            values: [size].
            numbers: [numbers], below 2^42, kept to 2^-20.
            uniform: gives so many uniforms in [0, 1), from a cryptographic generator.

        Values that are not finite count as zero and too large ones as the largest: data never leads to a refusal.

        Raises:
            AggregationRefused: the shapes are not those of the encoding.
        """
        out = self._empty(values, numbers, self.size)
        values = clamped(values, _EXACT / self.scale / 2.0)
        x = values if self._rotation is None else self._rotation.apply(values)
        for start in range(0, len(x), _BLOCK):
            block = x[start : start + _BLOCK] * self.scale
            block += uniform(len(block))
            np.floor(block, out=block)
            np.clip(block, -_EXACT, _EXACT, out=block)
            out[start : start + len(block)] = block.astype(np.int64).astype(self.dtype)
        return self._with_numbers(out, numbers)

    def carry(self, residues: NDArray[np.int64], numbers: Floats) -> Residues:
        """[m] residues of values that are integers already, modulo 2^b."""
        out = self._empty(residues, numbers, self.size)
        out[: self.size] = np.asarray(residues, dtype=np.int64).astype(self.dtype)
        return self._with_numbers(out, numbers)

    def decode(self, total: Residues) -> tuple[Floats, Floats]:
        """Values [size] and numbers of a sum."""
        signed = self._checked(total)[: self.carried].view(self.dtype.str.replace("u", "i"))
        values = signed.astype(np.float64) / self.scale
        if self._rotation is not None:
            values = np.asarray(self._rotation.undo(values))
        return values, self._read_numbers(total)

    def decode_integers(self, total: Residues) -> tuple[NDArray[np.int64], Floats]:
        """Integers [size], modulo 2^b, and numbers of a sum of what `carry` gave."""
        return self._checked(total)[: self.size].astype(np.int64), self._read_numbers(total)

    # Parts ---------------------------------------------------------------------------------------------

    @cached_property
    def _rotation(self) -> Rotation | None:
        return None if self.rotation is None else Rotation(self.size, self.rotation)

    @property
    def _width(self) -> int:
        """Bits of a limb: sums of up to 2^(3 b / 4) clients stay below 2^b."""
        return self.bits // 4

    @property
    def _limbs(self) -> int:
        return 64 // self._width

    def _empty(self, values: NDArray[Any], numbers: Floats, size: int) -> Residues:
        if values.shape != (size,) or numbers.shape != (self.numbers,):
            raise AggregationRefused(
                f"{values.shape} values and {numbers.shape} numbers: expected ({size},) and ({self.numbers},)",
                Reason.FORMAT,
            )
        return np.zeros(self.length, dtype=self.dtype)

    def _with_numbers(self, out: Residues, numbers: Floats) -> Residues:
        fixed = np.rint(clamped(numbers, _RANGE) * 2.0**UNIT_BITS).astype(np.int64).view(np.uint64)
        shifts = np.arange(self._limbs, dtype=np.uint64) * np.uint64(self._width)
        limbs = (fixed[:, None] >> shifts) & np.uint64((1 << self._width) - 1)
        out[self.carried :] = limbs.reshape(-1).astype(self.dtype)
        return out

    def _read_numbers(self, total: Residues) -> Floats:
        limbs = total[self.carried :].reshape(self.numbers, self._limbs).astype(np.uint64)
        shifts = np.arange(self._limbs, dtype=np.uint64) * np.uint64(self._width)
        fixed = (limbs << shifts).sum(axis=1, dtype=np.uint64).view(np.int64)
        return np.asarray(fixed.astype(np.float64) / 2.0**UNIT_BITS)

    def _checked(self, total: Residues) -> Residues:
        if total.shape != (self.length,) or total.dtype != self.dtype:
            raise AggregationRefused(
                f"sum is {total.dtype}{total.shape}: expected {self.dtype}({self.length},)", Reason.FORMAT
            )
        return np.ascontiguousarray(total)


def clamped(values: NDArray[Any], bound: float) -> Floats:
    """The values within +-`bound`; those that are not finite are zero."""
    floats = np.asarray(values, dtype=np.float64)
    return np.clip(np.where(np.isfinite(floats), floats, 0.0), -bound, bound)


def encoding_for(
    size: int,
    bits: Literal[16, 32],
    *,
    users: int,
    clip_norm: float,
    numbers: int,
    rotation_seed: int | None,
    noise_std: float = 0.0,
    beta: float = 1e-9,
) -> Encoding:
    """The encoding whose integers have room for everyone at the bound in one direction.

    Without a rotation a value of the sum is at most `users` C: there is no way to wrap around. With one it is below
    `tail` users C / sqrt(n) but for a chance of beta over rotation and rounding, n the padded size.

    Args:
        size: number of values.
        bits: 16 needs a rotation.
        users: N, how many users's updates can be in a sum.
        clip_norm: C.
        numbers: how many exact numbers follow.
        rotation_seed: public; None: no rotation.
        noise_std: of the noise that is in each value of the sum when it is encoded; 8 of them fit.
        beta: chance that any value wraps around, of noise beyond its 8 standard deviations apart.

    Raises:
        AggregationRefused: 16 bits without a rotation, or more users than the integers have room for.
    """
    if bits == 16 and rotation_seed is None:
        raise AggregationRefused(
            "16 bits were asked for without a rotation: single values would not fit; set secagg.rotate = true",
            Reason.RANGE,
        )
    # Rounding takes each client's values up to 1 further; there are at most as many clients as users.
    reach, rounding = users * clip_norm, float(users)
    if rotation_seed is not None:
        padded = padded_size(size)
        tails = tail(padded, beta / 2.0)
        reach *= min(1.0, tails / math.sqrt(padded))
        # A rounding is off by less than 1 either way; Hoeffding's bound for so many of them.
        rounding = min(rounding, tails * math.sqrt(users) / 2.0)
    room = 2.0 ** (bits - 1) - 1.0 - rounding
    if room < 2.0:
        raise AggregationRefused(
            f"sums over {users} users do not fit {bits} bits: set secagg.bits = 32", Reason.RANGE
        )
    return Encoding(size, bits, room / (reach + _TAILS * noise_std), numbers, rotation_seed)
