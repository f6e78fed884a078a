"""Matrix factorisation on local views, compiled: minibatch SGD for many users in one call.

The arithmetic is that of `fedrec.models.mf.MfObjective` (the generic torch path); a test compares the two.
Users are independent: each works on copies of the rows it touches, which stay in the first-level caches.

Letters: U users, S rows a user touches, B groups of a minibatch, n negatives, d embedding size.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

BCE, BPR = 0, 1


@numba.njit(cache=True, nogil=True, fastmath=True)
def train(
    row_ptr: NDArray[np.int64],
    row: NDArray[np.int64],
    example_ptr: NDArray[np.int64],
    slot: NDArray[np.int32],
    item_table: NDArray[np.float32],
    item_bias: NDArray[np.float32],
    user_vector: NDArray[np.float32],
    loss_kind: int,
    learning_rate: float,
    reg: float,
    batch_size: int,
    delta_table: NDArray[np.float32],
    delta_bias: NDArray[np.float32],
    loss: NDArray[np.float64],
) -> None:
    """Train every user of a batch; `user_vector` [U, d] is updated in place, the deltas [N, ...] are filled."""
    d, width = item_table.shape[1], slot.shape[1]
    rate, decay = np.float32(learning_rate), np.float32(reg)
    for u in range(len(row_ptr) - 1):
        first, last = row_ptr[u], row_ptr[u + 1]
        table, bias, p = delta_table[first:last], delta_bias[first:last], user_vector[u]
        for s in range(last - first):
            bias[s] = item_bias[row[first + s]]
            source, target = item_table[row[first + s]], table[s]
            for k in range(d):
                target[k] = source[k]
        scores = np.empty((batch_size, width), dtype=np.float32)
        grad = np.empty(d, dtype=np.float32)
        for start in range(example_ptr[u], example_ptr[u + 1], batch_size):
            size = min(batch_size, example_ptr[u + 1] - start)
            for b in range(size):
                for j in range(width):
                    scores[b, j] = bias[slot[start + b, j]] + _dot(p, table[slot[start + b, j]])
            loss[u] += _coefficients(scores[:size], loss_kind)
            grad[:] = decay * np.float32(size) * p
            for b in range(size):
                for j in range(width):
                    _axpy(grad, scores[b, j], table[slot[start + b, j]])
            for b in range(size):
                for j in range(width):
                    s, step = slot[start + b, j], -rate * scores[b, j]
                    bias[s] += step
                    _axpy(table[s], step, p)
            for k in range(d):
                p[k] -= rate * grad[k]
        for s in range(last - first):
            bias[s] -= item_bias[row[first + s]]
            source, target = item_table[row[first + s]], table[s]
            for k in range(d):
                target[k] -= source[k]


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for k in range(a.shape[0]):
        total += a[k] * b[k]
    return total


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _axpy(y: NDArray[np.float32], a: np.float32, x: NDArray[np.float32]) -> None:
    for k in range(x.shape[0]):
        y[k] += a * x[k]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _coefficients(scores: NDArray[np.float32], loss_kind: int) -> float:
    """Turn scores [B, 1+n] into the loss's derivatives by them, in place; returns the summed loss."""
    total = 0.0
    for b in range(scores.shape[0]):
        if loss_kind == BCE:
            for j in range(scores.shape[1]):
                sign = np.float32(-1.0) if j == 0 else np.float32(1.0)
                z = sign * scores[b, j]
                total += _softplus(z)
                scores[b, j] = sign * _sigmoid(z)
        else:
            positive, pull = scores[b, 0], np.float32(0)
            for j in range(1, scores.shape[1]):
                z = scores[b, j] - positive
                total += _softplus(z)
                scores[b, j] = _sigmoid(z)
                pull += scores[b, j]
            scores[b, 0] = -pull
    return total


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _sigmoid(z: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + np.exp(-z))


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _softplus(z: np.float32) -> np.float32:
    return max(z, np.float32(0)) + np.log(np.float32(1) + np.exp(-abs(z)))
