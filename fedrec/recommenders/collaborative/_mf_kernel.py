"""Matrix factorisation on local views, compiled: minibatch SGD for many users in one call.

The arithmetic is that of `MatrixFactorisation.objective` (the generic torch path); a test compares the two. Users are
independent: each works on copies of the rows it touches, which stay in the first-level caches. Where numba is not
installed the same loops run as Python, with sums in the order written here: equal up to float32 rounding.

Letters: U users, S rows a user touches, B groups of a minibatch, n negatives, d embedding size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.compiled import jit

BCE, BPR = 0, 1


@jit(cache=True, nogil=True, fastmath=True)
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
    """Train every user on copies; `user_vector` [U, d] changes in place, the deltas [N, ...] are filled."""
    d = item_table.shape[1]
    scores = np.empty((batch_size, slot.shape[1]), dtype=np.float32)
    grad = np.empty(d, dtype=np.float32)
    for u in range(len(row_ptr) - 1):
        first, last = row_ptr[u], row_ptr[u + 1]
        table, bias = delta_table[first:last], delta_bias[first:last]
        for s in range(last - first):
            bias[s] = item_bias[row[first + s]]
            source, target = item_table[row[first + s]], table[s]
            for k in range(d):
                target[k] = source[k]
        examples = slot[example_ptr[u] : example_ptr[u + 1]]
        loss[u] = _sgd(
            table, bias, user_vector[u], examples, loss_kind, learning_rate, reg, batch_size, scores, grad
        )
        for s in range(last - first):
            bias[s] -= item_bias[row[first + s]]
            source, target = item_table[row[first + s]], table[s]
            for k in range(d):
                target[k] -= source[k]


@jit(cache=True, nogil=True, fastmath=True)
def train_in_place(
    order: NDArray[np.int64],
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
) -> None:
    """The centralised baseline: users in the given order on one table, every step seen by the next."""
    scores = np.empty((batch_size, slot.shape[1]), dtype=np.float32)
    grad = np.empty(item_table.shape[1], dtype=np.float32)
    for u in order:
        examples = slot[example_ptr[u] : example_ptr[u + 1]]
        rows = np.empty(examples.shape, dtype=np.int64)
        for b in range(examples.shape[0]):
            for j in range(examples.shape[1]):
                rows[b, j] = row[row_ptr[u] + examples[b, j]]
        _sgd(
            item_table,
            item_bias,
            user_vector[u],
            rows,
            loss_kind,
            learning_rate,
            reg,
            batch_size,
            scores,
            grad,
        )


@jit(cache=True, nogil=True, fastmath=True)
def _sgd(
    table: NDArray[np.float32],
    bias: NDArray[np.float32],
    p: NDArray[np.float32],
    examples: NDArray[np.integer],
    loss_kind: int,
    learning_rate: float,
    reg: float,
    batch_size: int,
    scores: NDArray[np.float32],
    grad: NDArray[np.float32],
) -> float:
    """One user's minibatches; table [S, d], bias [S] and p [d] change in place; returns the summed loss."""
    rate, decay, total = np.float32(learning_rate), np.float32(reg), 0.0
    for start in range(0, examples.shape[0], batch_size):
        size = min(batch_size, examples.shape[0] - start)
        for b in range(size):
            for j in range(examples.shape[1]):
                scores[b, j] = bias[examples[start + b, j]] + _dot(p, table[examples[start + b, j]])
        total += _coefficients(scores[:size], loss_kind)
        grad[:] = decay * np.float32(size) * p
        for b in range(size):
            for j in range(examples.shape[1]):
                _axpy(grad, scores[b, j], table[examples[start + b, j]])
        for b in range(size):
            for j in range(examples.shape[1]):
                step = -rate * scores[b, j]
                bias[examples[start + b, j]] += step
                _axpy(table[examples[start + b, j]], step, p)
        for k in range(p.shape[0]):
            p[k] -= rate * grad[k]
    return total


@jit(cache=True, nogil=True, fastmath=True, inline="always")
def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for k in range(a.shape[0]):
        total += a[k] * b[k]
    return total


@jit(cache=True, nogil=True, fastmath=True, inline="always")
def _axpy(y: NDArray[np.float32], a: np.float32, x: NDArray[np.float32]) -> None:
    for k in range(x.shape[0]):
        y[k] += a * x[k]


@jit(cache=True, nogil=True, fastmath=True)
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


@jit(cache=True, nogil=True, fastmath=True, inline="always")
def _sigmoid(z: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + np.exp(-z))


@jit(cache=True, nogil=True, fastmath=True, inline="always")
def _softplus(z: np.float32) -> np.float32:
    return max(z, np.float32(0)) + np.log(np.float32(1) + np.exp(-abs(z)))
