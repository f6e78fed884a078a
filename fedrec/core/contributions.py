"""Which interactions of a user count, and at what weight, so that one user's update is bounded by construction.

A sum that hides every single user needs a bound on what one user adds. Clipping gives one by scaling a long history
down as it comes; here the history is first cut to its newest part and brought to a norm of at most 1, which loses
less. All functions look at one user at a time: nothing of one user moves another's weights.

Letters: U users, I items, N interactions of a batch, k selected items.
Out of scope: clipping and noise (`fedrec.privacy`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.kernels import last_of_each
from fedrec.core.updates import State

Floats = NDArray[np.float64]

#: Stands for a norm of 1 that no rounding lifts above 1.
UNIT = 1.0 - 1e-9


def distinct(batch: UserBatch) -> UserBatch:
    """Each item once per user, where it stands last.

    Two entries of one item add up in a sum, and the norm of the sum would be more than that of its entries.
    """
    mask = np.empty(len(batch.item), dtype=np.bool_)
    last_of_each(batch.indptr, batch.item, int(batch.item.max(initial=-1)) + 1, mask)
    return batch if mask.all() else batch.keep(mask)


def newest(batch: UserBatch, n: int | None) -> UserBatch:
    """The n newest interactions of each user; all without n."""
    return batch if n is None or not np.any(batch.counts > n) else batch.keep(batch.age < n)


def equal_weights(batch: UserBatch) -> Floats:
    """[N] 1 / sqrt(n_u): a histogram of norm 1 for every user with a history."""
    return np.asarray(UNIT * np.repeat(batch.counts, batch.counts) ** -0.5)


def most_popular(count: NDArray[np.floating], k: int) -> IntArray:
    """[min(k, I)] items by falling (noisy) count; of equal ones the smaller index first."""
    return np.argsort(-count, kind="stable")[:k].astype(np.int64)


def selected_state(count: Floats, k: int) -> State:
    """What is broadcast of a (noisy) histogram: `count` [I] and the `selected` items [min(k, I)]."""
    return {"count": count.astype(np.float32), "selected": most_popular(count, k)}


def restrict(batch: UserBatch, selected: IntArray, n_items: int) -> UserBatch:
    """The histories on the selected items alone, whose places in `selected` become the item indices."""
    place = np.full(n_items, -1, dtype=np.int64)
    place[selected] = np.arange(len(selected))
    within = batch.keep(place[batch.item] >= 0)
    return UserBatch(within.user, within.indptr, place[within.item], within.value)


def spread(
    scores: NDArray[np.floating], popularity: NDArray[np.floating], selected: IntArray
) -> NDArray[np.float32]:
    """[U, I] scores of all items from `scores` [U, k] of the selected ones: the others follow, by popularity [I]."""
    rank = np.empty(len(popularity))
    rank[most_popular(popularity, len(popularity))] = np.arange(len(popularity))
    floor = scores.min(axis=1, initial=0.0)
    span = 1.0 + scores.max(axis=1, initial=0.0) - floor
    out = floor[:, None] - span[:, None] * (1.0 + rank / len(rank))
    out[:, selected] = scores
    return np.asarray(out, dtype=np.float32)
