"""The compiled loop of `views`: a user's rows and examples from the history and counter-based draws.

Letters: U users, S rows a user touches, n negatives, G groups of examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.compiled import jit
from fedrec.core.compiled_randomness import absorb
from fedrec.core.randomness import GAMMA

#: Draws after which a colliding negative is kept: a user who has (almost) everything still ends.
_TRIES = 100


@jit(cache=True, nogil=True, inline="always")
def _below(draw: np.uint64, n: int) -> int:
    """A number in 0..n-1 from the upper 32 bits (Lemire 2019, without rejection: bias below n / 2^32)."""
    return int(((draw >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@jit(cache=True, nogil=True)
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


@jit(cache=True, nogil=True)
def fill(
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
