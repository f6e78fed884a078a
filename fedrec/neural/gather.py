"""Rows of per-user tables, with a gradient that is a plain sum of rows.

Out of scope: which rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """[K, ..., d] rows `index` [K, ...] of `table` [K, S, d], each user's of its own table.

    The table may be a view of one common table (stride 0 along K): it is never copied.
    """
    rows: Tensor = _Gather.apply(table, index)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        """Look rows up."""
        ctx.shape = table.shape
        users = torch.arange(len(index)).view(-1, *[1] * (index.dim() - 1))
        ctx.flat = (index + users * table.shape[1]).reshape(-1)
        if table.stride(0) == 0:
            return table[0].index_select(0, index.reshape(-1)).view(*index.shape, *table.shape[2:])
        flat = table.reshape(-1, *table.shape[2:])
        return flat.index_select(0, ctx.flat).view(*index.shape, *table.shape[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Add rows up."""
        users, rows, *rest = ctx.shape
        total = torch.zeros(users * rows, *rest)
        total.index_add_(0, ctx.flat, gradients[0].reshape(-1, *rest))
        return total.view(ctx.shape), None
