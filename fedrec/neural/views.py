"""Local views: the rows a user touches in a round, and the examples as positions among those rows.

A view is built from the user's history and counter-based draws alone; whoever trains on it (a compiled kernel,
a batched torch path, a phone) sees the same examples in the same order, and never the rest of the catalogue.

Letters: U users, E examples of a user (positives and negatives), S rows a user touches, n negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, key, user_keys


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
    from fedrec.neural._views_kernel import fill

    shuffle = user_keys(key(seed, Purpose.SHUFFLE, round_), batch.user)
    negative = user_keys(key(seed, Purpose.NEGATIVE, round_), batch.user)
    groups = int(batch.indptr[-1]) * epochs
    slot = np.empty((groups, 1 + negatives), dtype=np.int32)
    row = np.empty(len(batch.item) + groups * negatives, dtype=np.int64)
    row_ptr = np.zeros(len(batch) + 1, dtype=np.int64)
    used = fill(batch.indptr, batch.item, shuffle, negative, n_items, epochs, row_ptr, row, slot)
    return LocalViews(row_ptr, row[:used], batch.indptr * epochs, slot)
