"""A public random rotation that makes all coordinates of a vector about equally large, so that few bits hold each.

x -> H D x / sqrt(n): random signs D, then a Hadamard matrix H. For fixed x and random signs every coordinate is
sub-Gaussian with variance |x|^2 / n (a Rademacher sum; Ailon and Chazelle 2009, SIAM J. Comput. 39; used for sums of
updates by Suresh et al. 2017, arXiv 1611.00429), whatever was heavy in x before. It keeps the L2 norm, so bounds and
noise are as before. n is b 2^k for the order b of one of Paley's matrices, which takes the place of one factor: at
most an eighth more than the vector, where powers of two alone could double it. H is a Kronecker product, applied one
factor at a time as a matrix product. Out of scope: what is rounded afterwards (`encoding`).
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
#: Orders q + 1 of Hadamard matrices, q prime and 3 modulo 4 (and 1); their odd parts are all different.
_BASES = (1, 12, 20, 44, 60, 72, 108)
#: 2^5 = 32 wide products: wider ones take more arithmetic, narrower ones more passes over memory.
_LARGEST_FACTOR = 5


def padded_size(size: int) -> int:
    """n for a vector of `size` values; n for n again."""
    return min(base << (max(size - 1, 0) // base).bit_length() for base in _BASES)


def tail(padded: int, beta: float) -> float:
    """How many of its standard deviations no coordinate of a rotated vector exceeds, but for a chance of `beta`.

    sqrt(2 ln(2 n / beta)): Hoeffding's bound for a Rademacher sum, for n coordinates at once. One standard deviation
    is the vector's norm over sqrt(n); the norm itself is never exceeded.
    """
    return math.sqrt(2.0 * math.log(2.0 * padded / beta))


class Rotation:
    """One rotation; the same on every machine that has the seed.

    Args:
        size: of the vectors.
        seed: public, 0 to 2^64 - 1.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.padded = padded_size(size)
        self._seed = seed
        base = next(b for b in _BASES if self.padded % b == 0 and _is_power(self.padded // b))
        left = (self.padded // base).bit_length() - 1
        passes = math.ceil(left / _LARGEST_FACTOR)
        powers = [left // passes + (i < left % passes) for i in range(passes)] if passes else []
        self._factors = ([base] if base > 1 else []) + [2**power for power in powers]

    def apply(self, values: Floats) -> Floats:
        """[padded] of a vector [size], float32 or float64 as given."""
        x = np.zeros(self.padded, dtype=values.dtype)
        np.multiply(values, self._signs[: self.size], out=x[: self.size])
        return self._multiply(x, transposed=False)

    def undo(self, rotated: Floats) -> Floats:
        """[size] of a rotated vector [padded]."""
        x = self._multiply(rotated, transposed=True)
        return np.asarray(x[: self.size] * self._signs[: self.size])

    def _multiply(self, x: Floats, *, transposed: bool) -> Floats:
        """[padded] times the Kronecker product of the factors, the first of them along the slowest axis."""
        after = self.padded
        for factor in self._factors:
            after //= factor
            matrix = _hadamard(factor, x.dtype.char)
            matrix = matrix.T if transposed else matrix
            # With nothing behind it, one wide product instead of many of a matrix and a vector.
            last = after == 1
            x = x.reshape(-1, factor) @ matrix.T if last else matrix @ x.reshape(-1, factor, after)
        return x.reshape(-1)

    @cached_property
    def _signs(self) -> NDArray[np.float32]:
        """[padded] of -1 and 1, from an AES-256-CTR stream whose key is the seed."""
        key = self._seed.to_bytes(32, "big")
        stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        bits = np.unpackbits(np.frombuffer(stream.update(bytes(self.padded // 8 + 1)), dtype=np.uint8))
        return (bits[: self.padded].astype(np.float32) * 2 - 1).astype(np.float32)


@lru_cache(maxsize=64)
def _hadamard(order: int, kind: str) -> Floats:
    """[order, order] orthonormal: Sylvester's for powers of two, else Paley's first construction."""
    if _is_power(order):
        matrix = np.ones((1, 1))
        while len(matrix) < order:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    else:
        prime = order - 1
        squares = {(i * i) % prime for i in range(1, prime)}
        character = np.array([0] + [1 if i in squares else -1 for i in range(1, prime)])
        skew = np.zeros((order, order))
        skew[0, 1:], skew[1:, 0] = 1, -1
        skew[1:, 1:] = character[(np.arange(prime)[:, None] - np.arange(prime)) % prime]
        matrix = skew + np.eye(order)
    return np.asarray(matrix / math.sqrt(order), dtype=kind)


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0
