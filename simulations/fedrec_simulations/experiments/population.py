"""Synthetic populations: many more users who behave like those of a real data set.

A synthetic user walks along the histories of real users. The walk starts at the beginning of one history and takes
its items in order; now and then it crosses over, at the item just taken, into the history of someone else
who has the item, too, preferring one whose neighbourhood of it resembles what the walk has taken so far. Items
already taken are passed over. So steps from item to item, histories' lengths, the popularity of items and,
through the preference, the coherence of a taste are those of the real data, while no one's history is repeated.

For studying how quality under differential privacy grows with the population, where real data of that size may
not be at hand. Such users are *not* private: they are made of pieces of real histories and are as confidential as
the data they were fitted to. Out of scope: times (the order within a user is all there is) and ratings (all 1).

Letters: U real users, I items, N real interactions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Catalog, Dataset, IntArray, Interactions
from fedrec.core.randomness import U64, Purpose, key, uniform, user_keys
from fedrec_simulations.experiments._population_kernel import walk

#: Most synthetic users walked at once; bounds the memory beside the result.
CHUNK = 50_000


@dataclass(frozen=True)
class Walk:
    """How synthetic users walk; the defaults are fitted to ML-1M (leave-one-out, factor 1).

    Attributes:
        crossover: probability of crossing over after an item.
        candidates: how many histories are looked at for a crossover.
        window: items before the crossing point by which a history is compared with the walk.
    """

    crossover: float = 0.1
    candidates: int = 16
    window: int = 32

    def __post_init__(self) -> None:
        if not 0.0 < self.crossover <= 1.0:
            raise ConfigError(f"crossover={self.crossover}: expected a probability above 0, for example 0.1")
        if self.candidates < 1 or self.window < 0:
            raise ConfigError(
                f"candidates={self.candidates}, window={self.window}: expected at least 1 and at least 0"
            )


def synthetic_population(base: Interactions, factor: float, seed: int, how: Walk | None = None) -> Dataset:
    """`factor` times as many users as `base` has (those without interactions not counted).

    Args:
        base: [N] the real data, oldest first within each user; only public research data or one's own.
        factor: N' / U; 10 gives ten synthetic users per real one.
        seed: of every draw; user k depends on the seed and k only, so that a larger population starts with the
            users of a smaller one.
        how: see `Walk`.

    Raises:
        ConfigError: a factor that gives no user.
        DataError: nothing to fit to.
    """
    real = np.flatnonzero(base.counts > 0)
    if not len(real):
        raise DataError("a population cannot be fitted to a data set without interactions: give another one")
    users = round(factor * len(real)) if np.isfinite(factor) else 0
    if users < 1:
        raise ConfigError(
            f"factor={factor}: expected at least {1 / len(real):g}, which is one user, for example 10"
        )
    how = how or Walk()
    keys = user_keys(key(seed, Purpose.POPULATION), np.arange(users, dtype=np.int64))
    start = real[(uniform(keys, 1)[:, 0] * len(real)).astype(np.int64)]
    item, counts = _histories(base, start, keys, how)
    interactions = _columns(item, counts, base.item_ids)
    name = f"synthetic x{factor:g}"
    return Dataset(name, interactions, Catalog.bare(base.item_ids), "as the data it was fitted to")


def _histories(
    base: Interactions, start: IntArray, keys: U64, how: Walk
) -> tuple[NDArray[np.int32], IntArray]:
    """Items of all synthetic users one after the other, and how many each has."""
    items = base.item.astype(np.int32)
    owner = base.user.astype(np.int32)
    by_item = np.argsort(items, kind="stable").astype(np.int32)
    of_item = np.concatenate([[0], np.cumsum(base.item_counts)]).astype(np.int64)
    lengths = base.counts[start]
    out = np.empty(int(lengths.sum()), dtype=np.int32)
    counts = np.zeros(len(start), dtype=np.int64)
    filled = 0
    for lo in range(0, len(start), CHUNK):
        part = slice(lo, lo + CHUNK)
        filled += walk(
            items, owner, base.indptr, of_item, by_item, start[part], lengths[part], keys[part],
            how.crossover, how.candidates, how.window, out[filled:], counts[part],
        )  # fmt: skip
    return out[:filled], counts


def _columns(item: NDArray[np.int32], counts: IntArray, item_ids: NDArray[np.str_]) -> Interactions:
    """Interactions of histories that already lie in order: `from_columns` would sort them for nothing."""
    indptr = np.concatenate([[0], np.cumsum(counts)])
    user = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    position = np.arange(len(item), dtype=np.int64) - indptr[:-1][user]
    # As many digits for all, so that sorted ids are in the order of the users.
    user_ids = np.char.zfill(np.arange(len(counts)).astype(np.str_), len(str(len(counts))))
    ones = np.ones(len(item), dtype=np.float32)
    return Interactions(user, item.astype(np.int64), ones, position, user_ids, item_ids)
