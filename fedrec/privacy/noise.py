"""Noise that has to keep a secret: uniforms, normals and Skellam integers from an AES-256-CTR keystream.

The generators of numpy and torch are no secret: their state follows from their outputs, and torch's on the CPU
takes only 32 bits of a seed, so that all noises can be tried. Here the key is 256 bits from the operating system.
With a seed the same streams can be repeated, for simulations and tests; whoever knows the seed can subtract the
noise, so a seeded run protects no one.

Out of scope: how much noise a guarantee needs (`plan`), and public draws such as cohorts (`fedrec.core.randomness`).
Time and memory are side channels that are not closed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from operator import index

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy._skellam import SKELLAM_TABLE_ERROR, draw

__all__ = ["SKELLAM_TABLE_ERROR", "NoiseSource", "snap"]

#: The grid of `snap` is between 2^-SNAP_BITS and 2^-(SNAP_BITS + 1) of the standard deviation.
SNAP_BITS = 24

#: Bytes of keystream per call of the cipher: small enough for the cache, large enough that calls cost nothing.
_CHUNK = 1 << 16
_ZEROS = bytes(_CHUNK)


class NoiseSource:
    """A keystream and the distributions drawn from it.

    An unseeded source draws its key from the operating system, and a new one in a process that was forked from
    its own, which would repeat its noise otherwise. It cannot be copied or pickled, for the same reason.

    Args:
        seed: any whole number, all of whose digits count; None: secret. A seeded source is for simulation only.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._path: tuple[str | int, ...] | None = None if seed is None else (index(seed),)
        self._lock = threading.Lock()
        self._stream = self._keyed()
        self._process = os.getpid()

    @property
    def seeded(self) -> bool:
        """Whether the noise can be repeated, and hence subtracted, by whoever knows the seed."""
        return self._path is not None

    def derive(self, *labels: str | int) -> NoiseSource:
        """A source of its own: with a seed a function of seed and labels alone, without one simply a new one."""
        child = NoiseSource()
        if self._path is not None:
            child._path = (*self._path, *(x if isinstance(x, str) else index(x) for x in labels))
            child._stream = child._keyed()
        return child

    def words(self, size: int) -> NDArray[np.uint64]:
        """[size] uniform 64-bit words, the next of the keystream."""
        out = np.empty(size, dtype="<u8")
        view = out.data.cast("B") if size else memoryview(b"")
        with self._lock:
            if self._process != os.getpid() and not self.seeded:
                self._stream, self._process = self._keyed(), os.getpid()
            for start in range(0, len(view), _CHUNK):
                part = view[start : start + _CHUNK]
                self._stream.update_into(_ZEROS[: len(part)], part)
        return out.astype(np.uint64, copy=False)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """[size] uniforms in [0, 1), multiples of 2^-53."""
        return (self.words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def bernoulli(self, p: float, size: int) -> NDArray[np.bool_]:
        """[size] coins, each true with probability p, exact to 2^-53.

        Raises:
            PrivacyRefused: p is no probability.
        """
        if not 0.0 <= p <= 1.0:
            raise PrivacyRefused(f"probability of a coin is {p}: expected a number from 0 to 1")
        return np.asarray(self.uniform(size) < p)

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        """[size] normals of mean 0 and standard deviation `std` (Box and Muller 1958, both outputs).

        The radius comes from 53 bits, so nothing is beyond 8.57 standard deviations (probability 1e-17 each).
        Add them to what they protect, and `snap` the sum.

        Raises:
            PrivacyRefused: std is negative or not finite.
        """
        if not (math.isfinite(std) and std >= 0.0):
            raise PrivacyRefused(f"standard deviation of noise is {std}: expected a finite number, 0 or more")
        half = (size + 1) // 2
        radius, angle = self.uniform(half), self.uniform(half)
        np.subtract(1.0, radius, out=radius)
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        radius *= std
        angle *= 2.0 * math.pi
        out = np.empty(2 * half)
        np.multiply(radius, np.cos(angle), out=out[:half])
        np.multiply(radius, np.sin(angle, out=angle), out=out[half:])
        return out[:size]

    def skellam(self, size: int, variance: float) -> NDArray[np.int64]:
        """[size] integers of the symmetric Skellam distribution: a difference of two Poisson(variance / 2).

        Sums of them are Skellam again, with the sum of the variances, so shares of noise from many devices add up
        exactly. Each draw is within `SKELLAM_TABLE_ERROR` of the distribution in total variation.

        Raises:
            PrivacyRefused: the variance is negative, not finite, or beyond what is supported.
        """
        return draw(self.words, size, variance)

    def _keyed(self) -> CipherContext:
        if self._path is None:
            key = os.urandom(32)
        else:
            key = hashlib.sha256(b"fedrec noise, not private:" + json.dumps(self._path).encode()).digest()
        # Every key is used for one stream only, so its counter may start at zero.
        return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


def snap(values: NDArray[np.float64], std: float) -> NDArray[np.float64]:
    """Round values that already hold noise of standard deviation `std` to a grid that no secret influences.

    A float sampler does not reach every float, and which ones it reaches after an addition depends on what was
    added: the lowest bits of `secret + noise` can rule secrets out (Mironov 2012, "On significance of the least
    significant bits for differential privacy", CCS; for Gaussian samplers Jin et al. 2022, arXiv 2112.05307).
    Rounding to a power of two near `std` 2^-24, after the addition, throws those bits away: each point of the grid
    within 8 standard deviations is the image of a great many pairs of uniforms, whatever was added. It is
    post-processing, so it costs no privacy, and an error of 2^-25 standard deviations costs no accuracy. What it
    is not is a proof; that takes integers with discrete noise, which is what the distributed mechanism sends.

    Args:
        values: of any shape.
        std: standard deviation of the noise in every value; 0 leaves the values as they are.
    """
    if std <= 0.0:
        return values
    grid = 2.0 ** (math.frexp(std)[1] - 1 - SNAP_BITS)
    return np.asarray(np.rint(values / grid) * grid)
