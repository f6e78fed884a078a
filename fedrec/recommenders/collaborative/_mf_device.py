"""Matrix factorisation as a small torch module with a loss per example, for training by per-example gradients.

Kept apart from `mf` so that torch is imported only where this is used. Three `nn.Embedding`s and nothing else: the
layers whose per-example gradients Opacus computes correctly, repeated ids of one example included.

Letters: B examples, n negatives, S rows, d embedding size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fedrec.core.updates import State


class MfModule(nn.Module):
    """score = p · q_i + b_i with p, q [S, d] and b [S] as parameters, in double precision."""

    def __init__(self, rows: State, local: State, loss: Literal["bce", "bpr"], reg: float) -> None:
        super().__init__()
        self.user = _embedding(local["user_vector"])
        self.table = _embedding(rows["item_table"])
        self.bias = _embedding(rows["item_bias"][:, None])
        self._loss, self._reg = loss, reg

    def forward(self, slots: Tensor) -> Tensor:
        """[B] loss of each example; slots [B, 1+n], the positive first."""
        user = self.user(slots.new_zeros(len(slots), 1))
        scores = (self.table(slots) * user).sum(-1) + self.bias(slots).squeeze(-1)
        if self._loss == "bce":
            per_example = softplus(-scores[:, 0]) + softplus(scores[:, 1:]).sum(-1)
        else:
            per_example = softplus(scores[:, 1:] - scores[:, :1]).sum(-1)
        losses: Tensor = per_example + self._reg / 2 * user.square().sum((1, 2))
        return losses

    def collect(self, attribute: str) -> tuple[State, State]:
        """An attribute of the parameters, such as their gradients, in the shapes of the constructor's arrays."""
        user, table, bias = (
            getattr(layer.weight, attribute).detach().numpy() for layer in (self.user, self.table, self.bias)
        )
        return {"item_table": table, "item_bias": bias[:, 0]}, {"user_vector": user}


def _embedding(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> nn.Embedding:
    return nn.Embedding(len(values), values.shape[1], _weight=torch.from_numpy(values.astype(np.float64)))
