"""Local views: the rows a user touches in a round, and the examples as positions among those rows.

A view is built from the user's history and counter-based draws alone; whoever trains on it (a compiled kernel,
a batched torch path, a phone) sees the same examples in the same order, and never the rest of the catalogue.

Letters: U users, E examples of a user (positives and negatives), S rows a user touches, n negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from fedrec.core.compiled_randomness import absorb
from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import GAMMA, Purpose, key, user_keys

#: Draws after which a colliding negative is kept: a user who has (almost) everything still ends.
_TRIES = 100


@dataclass(frozen=True)
class LocalViews:
    """Views of U users, ragged.

    Attributes:
        row_ptr: [U+1] user u touches `row[row_ptr[u]:row_ptr[u+1]]`.
        row: item indices, each once per user.
        example_ptr: [U+1] in groups: user u's groups are `slot[example_ptr[u]:example_ptr[u+1]]`.
        slot: [G, 1+n] int32, positions among the user's rows: the positive, then its n negatives.
    """

    row_ptr: NDArray[np.int64]
    row: NDArray[np.int64]
    example_ptr: NDArray[np.int64]
    slot: NDArray[np.int32]


def build_views(
    batch: UserBatch, seed: int, round_: int, n_items: int, negatives: int, epochs: int
) -> LocalViews:
    """Shuffled positives, each with `negatives` items drawn uniformly among those the user does not have.

    The draws depend on (seed, round, user, counter) only. An item of the history is never drawn as a negative;
    what is held out is no part of the history, so it is drawn like any other item.
    """
    shuffle = user_keys(key(seed, Purpose.SHUFFLE, round_), batch.user)
    negative = user_keys(key(seed, Purpose.NEGATIVE, round_), batch.user)
    groups = int(batch.indptr[-1]) * epochs
    slot = np.empty((groups, 1 + negatives), dtype=np.int32)
    row = np.empty(len(batch.item) + groups * negatives, dtype=np.int64)
    row_ptr = np.zeros(len(batch) + 1, dtype=np.int64)
    used = _fill(batch.indptr, batch.item, shuffle, negative, n_items, epochs, row_ptr, row, slot)
    return LocalViews(row_ptr, row[:used], batch.indptr * epochs, slot)


@numba.njit(cache=True, nogil=True, inline="always")
def _below(draw: np.uint64, n: int) -> int:
    """A number in 0..n-1 from the upper 32 bits (Lemire 2019, without rejection: bias below n / 2^32)."""
    return int(((draw >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _slot_of(table: NDArray[np.int64], item: int, rows: NDArray[np.int64], count: int) -> tuple[int, int]:
    """Slot of an item in the open-addressing table (item + 1, slot), inserting it; and the new row count."""
    mask = table.shape[0] - 1
    at = int((np.uint64(item) * GAMMA) >> np.uint64(40)) & mask
    while True:
        if table[at, 0] == item + 1:
            return int(table[at, 1]), count
        if table[at, 0] == 0:
            table[at, 0] = item + 1
            table[at, 1] = count
            rows[count] = item
            return count, count + 1
        at = (at + 1) & mask


@numba.njit(cache=True, nogil=True)
def _fill(
    indptr: NDArray[np.int64],
    item: NDArray[np.int64],
    shuffle: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    n_items: int,
    epochs: int,
    row_ptr: NDArray[np.int64],
    row: NDArray[np.int64],
    slot: NDArray[np.int32],
) -> int:
    """Fill the views of all users; returns the number of rows used."""
    used, group, n = 0, 0, slot.shape[1] - 1
    for u in range(len(indptr) - 1):
        count = indptr[u + 1] - indptr[u]
        size = 16
        while size < 2 * count * (1 + n * epochs):
            size *= 2
        table = np.zeros((size, 2), dtype=np.int64)
        rows, filled = row[used:], 0
        order = np.empty(count, dtype=np.int64)
        for j in range(count):
            order[j], filled = _slot_of(table, item[indptr[u] + j], rows, filled)
        own, draw, turn = filled, np.uint64(0), np.uint64(0)
        for _ in range(epochs):
            for j in range(count - 1, 0, -1):
                k = _below(absorb(shuffle[u], turn), j + 1)
                turn += np.uint64(1)
                order[j], order[k] = order[k], order[j]
            for j in range(count):
                slot[group, 0] = order[j]
                for m in range(n):
                    for _try in range(_TRIES):
                        candidate = _below(absorb(negative[u], draw), n_items)
                        draw += np.uint64(1)
                        where, filled = _slot_of(table, candidate, rows, filled)
                        if where >= own:
                            break
                    slot[group, 1 + m] = where
                group += 1
        used += filled
        row_ptr[u + 1] = used
    return used
