"""Counter-based randomness: every draw is a hash of (seed, purpose, round, user, counter).

No generator has a state, so whichever engine, process or order computes a user's update, it sees the same
batches, the same negatives and the same initial vectors. Words and uniforms are the same on every machine; a normal
may differ in its last bit, because logarithm and cosine do. The hash is SplitMix64's finaliser (Steele et al.
2014, "Fast splittable pseudorandom number generators", OOPSLA), applied once per component. It is for
simulation and training only: noise that must keep a secret never comes from here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_A = np.uint64(0xBF58476D1CE4E5B9)
MIX_B = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a draw is for; two purposes never share a stream."""

    INIT_SHARED = 1
    INIT_LOCAL = 2
    COHORT = 3
    SHUFFLE = 4
    NEGATIVE = 5
    CANDIDATE = 6
    BOOTSTRAP = 7
    SPLIT = 8
    EVALUATED = 9
    POPULATION = 10
    SHARD = 11
    WINDOW = 12
    DROPOUT = 13
    MASK = 14
    SKETCH = 15
    ROUNDING = 16
    TURN = 17
    GROUP = 18


def finalise(x: Any) -> Any:
    """SplitMix64's finaliser of one uint64 or of an array; compiled ones come from `compiled_randomness`."""
    x = (x ^ (x >> np.uint64(30))) * MIX_A
    x = (x ^ (x >> np.uint64(27))) * MIX_B
    return x ^ (x >> np.uint64(31))


def mix(x: U64) -> U64:
    """`finalise` of an array of uint64 (any shape)."""
    with np.errstate(over="ignore"):
        return cast(U64, finalise(x))


def absorb(state: U64, value: U64) -> U64:
    """Next state of the hash after one more component."""
    with np.errstate(over="ignore"):
        return mix(state * GAMMA + value + GAMMA)


def key(seed: int, purpose: Purpose, round_: int = 0) -> np.uint64:
    """The key of one purpose in one round; users and counters are absorbed later."""
    state = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    for part in (int(purpose), round_):
        state = absorb(state, np.array([part], dtype=np.uint64))
    return np.uint64(state[0])


def user_keys(base: np.uint64, users: NDArray[np.int64]) -> U64:
    """[U] one key per user."""
    return absorb(np.full(len(users), base, dtype=np.uint64), users.astype(np.uint64))


def bits(keys: U64, n: int) -> U64:
    """[..., n] independent uint64 draws for each key, by counter."""
    counter = np.arange(n, dtype=np.uint64)
    return absorb(np.broadcast_to(keys[..., None], (*keys.shape, n)), counter)


def uniform(keys: U64, n: int) -> NDArray[np.float64]:
    """[..., n] uniforms in [0, 1) with 53 bits."""
    return (bits(keys, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: U64, n: int) -> NDArray[np.float64]:
    """[..., n] standard normals by Box and Muller (1958); for initial values, never for privacy."""
    u = uniform(keys, 2 * n)
    radius = np.sqrt(-2.0 * np.log1p(-u[..., :n]))
    return np.asarray(radius * np.cos(2.0 * np.pi * u[..., n:]))
