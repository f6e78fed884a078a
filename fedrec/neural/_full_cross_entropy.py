"""Cross-entropy over the whole catalogue with a table that rows are also read from: the costliest part of training.

Written out by hand, where autograd spends most of its time on memory. Scores of one user stay in the cache and those
of a chunk do not, so users go through one by one, and their gradient is all that is left behind. Positions at which
nothing is learned are never scored. The gradients of reading and of scoring meet in one buffer, where autograd fills
and adds two, each of the size of K tables. Products are numpy's: on processors by AMD its library can use the widest
registers (`OPENBLAS_CORETYPE=SKYLAKEX` where it does not by itself), which torch's does by Intel alone.

Letters: K users, L positions, S rows, d embedding size. Out of scope: sampled losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
#: Likelihoods below it are reported as this much, a loss of 85; gradients are not concerned.
_LEAST = 1e-37


def read_rows(table: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """[K, L, d] rows `index` [K, L] of `table` [K, S, d], and the table once more, for `cross_entropy` alone.

    The gradient of `cross_entropy` for that table is a buffer of its own, into which that of the rows is added.
    """
    rows, same = _Read.apply(table, index)  # type: ignore[no-untyped-call]
    return rows, same


def cross_entropy(h: Tensor, table: Tensor, bias: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """[K] sum over the positions of weight · -log of the target's share of exp(h · table + bias).

    Args:
        h: [K, L, d] hidden states.
        table: [K, S, d]; may be a view of a common one.
        bias: [K, S].
        target: [K, L] rows.
        weight: [K, L] 0 where nothing is learned.
    """
    loss: Tensor = _CrossEntropy.apply(h, table, bias, target, weight)  # type: ignore[no-untyped-call]
    return loss


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Look rows up."""
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.index = table.shape, index
        return table[torch.arange(len(index)).unsqueeze(1), index], table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        """Add rows up, in what scoring has left."""
        rows, total = gradients
        if rows is None:
            return total, None
        total = torch.zeros(ctx.shape) if total is None else total
        for own, index, added in zip(total, ctx.index, rows, strict=True):
            own.index_add_(0, index, added)
        return total, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, table: Tensor, bias: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Losses, and the gradients at once: later the scores would have to be made again."""
        read, rows, raised, asked, weights = (a.detach().numpy() for a in (h, table, bias, target, weight))
        loss = np.zeros(len(read), dtype=np.float32)
        by_read = np.zeros(read.shape, dtype=np.float32)
        # Where only personal parameters learn, the table stays as it is.
        by_row = np.empty(rows.shape if ctx.needs_input_grad[1] else (len(rows), 0, 0), dtype=np.float32)
        by_bias = np.empty(raised.shape, dtype=np.float32)
        for k in range(len(read)):
            at = np.flatnonzero(weights[k])
            parts = read[k, at], rows[k], raised[k], asked[k, at], weights[k, at]
            loss[k], by_read[k, at] = _one_user(*parts, by_row[k], by_bias[k])
        found = (torch.from_numpy(values) for values in (by_read, by_row, by_bias))
        ctx.gradients = [
            g if wanted else None for g, wanted in zip(found, ctx.needs_input_grad, strict=False)
        ]
        return torch.from_numpy(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Losses are summed nearly always: what comes is 1, and no pass over the tables is spent on it."""
        factor, found = gradients[0], ctx.gradients
        del ctx.gradients
        if not bool((factor == 1.0).all()):
            found = [None if g is None else g * factor.view(-1, *[1] * (g.dim() - 1)) for g in found]
        return *found, None, None


def _one_user(
    h: Array,
    table: Array,
    bias: Array,
    target: NDArray[np.int64],
    weight: Array,
    by_row: Array,
    by_bias: Array,
) -> tuple[np.float32, Array]:
    """Loss and gradient [n, d] for the states of n positions; those for table and bias go to the last two."""
    scores = h @ table.T
    scores += bias
    share: Array = torch.from_numpy(scores).softmax(1).numpy()
    here = np.arange(len(target)), target
    loss = weight @ -np.log(np.maximum(share[here], np.float32(_LEAST)))
    share[here] -= 1.0
    if by_row.size:
        np.matmul(share.T, h * weight[:, None], out=by_row)
    np.matmul(weight, share, out=by_bias)
    by_state: Array = (share @ table) * weight[:, None]
    return np.float32(loss), by_state
