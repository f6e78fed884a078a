"""User profiles: how a history becomes the sparse vector x_u that closed-form models learn from and score with.

Two weights are in use. *Recency*: an interaction that k newer ones followed counts 2^(-k / half_life)
(exponential decay as in Ding and Li 2005, "Time weight collaborative filtering", CIKM, with the position in
the user's history as the clock, which needs no time stamps). *Activity*: the profile of a user with n
interactions is scaled by n^(-p), so that very active users do not decide the item-item structure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.core.contributions import distinct
from fedrec.core.interactions import IntArray, UserBatch

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def recency(batch: UserBatch, half_life: float | None) -> NDArray[np.float64]:
    """[N] weight of each interaction; all ones without a half-life (given in interactions)."""
    if half_life is None:
        return np.ones(len(batch.item))
    return np.asarray(np.exp2(-batch.age / half_life))


def profile(batch: UserBatch, half_life: float | None, activity_exponent: float) -> NDArray[np.float64]:
    """[N] recency weight times n_u^(-activity_exponent)."""
    counts = np.repeat(batch.counts, batch.counts).astype(np.float64)
    return np.asarray(recency(batch, half_life) * counts**-activity_exponent)


def merged(batch: UserBatch, weights: NDArray[np.float64]) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """`indptr` [U+1], item and weight of each user's items, each once: entries of one item add up.

    The norm of a sum is not that of its entries, so whatever is bounded by its norm needs this form.
    """
    if distinct(batch) is batch:
        return batch.indptr, batch.item, weights
    width = int(batch.item.max()) + 1
    pair, where = np.unique(batch.row * width + batch.item, return_inverse=True)
    indptr = np.searchsorted(pair, np.arange(len(batch) + 1) * width)
    return indptr.astype(np.int64), pair % width, np.bincount(where, weights).astype(np.float64)


def matrix(batch: UserBatch, weights: NDArray[np.float64], n_items: int) -> csr_array:
    """[U, I] sparse profiles of a batch."""
    from scipy.sparse import csr_array

    return csr_array((weights, batch.item, batch.indptr), shape=(len(batch), n_items))


def neighbour_matrix(neighbour: NDArray[np.int32], strength: NDArray[np.float32]) -> csr_array:
    """[I, I] sparse: row j holds the strengths [I, k] of the neighbours [I, k] of item j."""
    from scipy.sparse import csr_array

    n_items, k = neighbour.shape
    pointers = np.arange(n_items + 1) * k
    return csr_array((strength.reshape(-1), neighbour.reshape(-1), pointers), shape=(n_items, n_items))
