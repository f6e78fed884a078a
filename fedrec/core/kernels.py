"""Compiled loops shared by all models: adding sparse contributions of many users into dense sums.

numba compiles each at its first call, once per machine, and caches the result beside the source.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.compiled import compiled


@compiled(cache=True, nogil=True)
def add_rows(
    total: NDArray[np.float64],
    indptr: NDArray[np.int64],
    row: NDArray[np.int64],
    values: NDArray[np.floating],
    scale: NDArray[np.float64],
) -> None:
    """total[row[n]] += scale[u] * values[n] for all n of user u; total [I, d], values [N, d]."""
    for u in range(len(indptr) - 1):
        s = scale[u]
        if s == 0.0:
            continue
        for n in range(indptr[u], indptr[u + 1]):
            target = total[row[n]]
            source = values[n]
            for k in range(source.shape[0]):
                target[k] += s * source[k]


@compiled(cache=True, nogil=True)
def add_scalars(
    total: NDArray[np.float64],
    indptr: NDArray[np.int64],
    row: NDArray[np.int64],
    values: NDArray[np.floating],
    scale: NDArray[np.float64],
) -> None:
    """The same for scalar rows: total [I], values [N]."""
    for u in range(len(indptr) - 1):
        s = scale[u]
        if s == 0.0:
            continue
        for n in range(indptr[u], indptr[u + 1]):
            total[row[n]] += s * values[n]


@compiled(cache=True, nogil=True)
def add_dense(total: NDArray[np.float64], values: NDArray[np.floating], scale: NDArray[np.float64]) -> None:
    """total += Σ_u scale[u] * values[u], in order of the users; total [n], values [U, n].

    Piece by piece: the sum stays in the cache while the users pass, and what is read of each is long enough to be
    fetched ahead.
    """
    n = total.shape[0]
    for start in range(0, n, 65536):
        stop = min(start + 65536, n)
        for u in range(values.shape[0]):
            s = scale[u]
            if s == 0.0:
                continue
            for k in range(start, stop):
                total[k] += s * values[u, k]


@compiled(cache=True, nogil=True)
def gram_into(
    total: NDArray[np.float64],
    indptr: NDArray[np.int64],
    item: NDArray[np.int64],
    x: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> None:
    """total += Σ_u scale[u] x_u x_uᵀ for sparse x_u; total [I, I]."""
    for u in range(len(indptr) - 1):
        s = scale[u]
        if s == 0.0:
            continue
        for a in range(indptr[u], indptr[u + 1]):
            target = total[item[a]]
            factor = s * x[a]
            for b in range(indptr[u], indptr[u + 1]):
                target[item[b]] += factor * x[b]


# Sums may be reordered; that nothing is NaN or infinite may not be assumed: callers find bad updates by their norm.
@compiled(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def squared_row_norms(
    indptr: NDArray[np.int64], values: NDArray[np.floating], out: NDArray[np.float64]
) -> None:
    """out[u] = Σ |values[n]|² over all n of user u, in double precision: a bound must not hang on rounding."""
    flat, width = values.reshape(-1), values.shape[1]
    for u in range(len(indptr) - 1):
        total = 0.0
        own = flat[indptr[u] * width : indptr[u + 1] * width]
        for k in range(own.shape[0]):
            total += np.float64(own[k]) * np.float64(own[k])
        out[u] = total


@compiled(cache=True, nogil=True)
def last_of_each(
    indptr: NDArray[np.int64], item: NDArray[np.int64], n_items: int, out: NDArray[np.bool_]
) -> None:
    """out[n]: whether item[n] stands nowhere later in the history of the same user; items are 0..n_items - 1."""
    seen_by = np.full(n_items, -1, dtype=np.int64)
    for u in range(len(indptr) - 1):
        for n in range(indptr[u + 1] - 1, indptr[u] - 1, -1):
            out[n] = seen_by[item[n]] != u
            seen_by[item[n]] = u


@compiled(cache=True, nogil=True)
def near_pairs_into(
    total: NDArray[np.float64],
    indptr: NDArray[np.int64],
    item: NDArray[np.int64],
    weight: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> None:
    """total[i, j] += scale[u] * weight[distance] for pairs of user u's items, both ways round; total [I, I]."""
    for u in range(len(indptr) - 1):
        s = scale[u]
        if s == 0.0:
            continue
        for a in range(indptr[u], indptr[u + 1]):
            i = item[a]
            total[i, i] += s * weight[0]
            for distance in range(1, min(len(weight), indptr[u + 1] - a)):
                j, value = item[a + distance], s * weight[distance]
                total[i, j] += value
                total[j, i] += value
