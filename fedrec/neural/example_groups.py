"""The work of models that learn from single interactions: a positive and its n negatives, minibatch by minibatch.

Letters: K users, B groups of a minibatch (padded), n negatives.
Out of scope: how items are scored (models), which negatives are drawn (`fedrec.neural.views`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from fedrec.neural.batched import Params, Touched
from fedrec.neural.views import LocalViews


class Objective(Protocol):
    """What a model must say to be trained here."""

    def __call__(self, params: Params, slots: Tensor, mask: Tensor) -> Tensor:
        """[K] loss, summed over the real groups; slots [K, B, 1+n] among the user's rows, mask [K, B] 1 for real."""


@dataclass(frozen=True)
class GroupWork:
    """Minibatches of at most `batch_size` groups, the same for all or [K] one for each user."""

    objective: Objective
    views: LocalViews
    batch_size: int | NDArray[np.int64]

    @property
    def steps(self) -> int:
        """Minibatches of the user who has most."""
        counts = np.diff(self.views.example_ptr)
        return int((-(-counts // np.maximum(self.batch_size, 1))).max(initial=0))

    @property
    def examples(self) -> NDArray[np.float64]:
        """[K] positives and negatives."""
        return np.asarray(np.diff(self.views.example_ptr) * self.views.slot.shape[1], dtype=np.float64)

    @property
    def touched(self) -> Touched:
        """Rows of each user."""
        return Touched(self.views.row_ptr, self.views.row)

    def half(self, *, newer: bool) -> GroupWork:
        """The groups of the newer or the older half of the history; of an odd number the newer half is larger."""
        counts, place = np.diff(self.views.example_ptr), self.views.slot[:, 0]
        # A positive's slot is its place in the history.
        count = np.repeat(counts, counts)
        keep = (place >= count // 2) == newer
        ptr = np.concatenate([[0], np.cumsum(keep)])[self.views.example_ptr]
        return replace(self, views=replace(self.views, example_ptr=ptr, slot=self.views.slot[keep]))

    def active(self, step: int) -> Tensor | None:
        """[K] who has groups in this minibatch."""
        return torch.from_numpy(self._groups(step)[1].any(axis=1).astype(np.float32))

    def loss(self, params: Params, step: int) -> Tensor:
        """[K] of one minibatch."""
        group, mask = self._groups(step)
        width = int(mask.sum(axis=1).max(initial=1))
        slots = self.views.slot[np.where(mask, group, 0)] * mask[:, :, None]
        chosen = torch.from_numpy(mask[:, :width].astype(np.float32))
        return self.objective(params, torch.from_numpy(slots[:, :width].astype(np.int64)), chosen)

    def _groups(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[K, B] groups of a minibatch, and which are real."""
        size = np.broadcast_to(np.asarray(self.batch_size), len(self.views.example_ptr) - 1)
        first, last = self.views.example_ptr[:-1] + step * size, self.views.example_ptr[1:]
        group = first[:, None] + np.arange(int(size.max(initial=1)))
        return group, group < np.minimum(first + size, last)[:, None]


def group_loss(scores: Tensor, mask: Tensor, kind: Literal["bce", "bpr"]) -> Tensor:
    """[K] of scores [K, B, 1+n], the positive first: binary cross-entropy, or -log sigmoid of each difference."""
    if kind == "bce":
        each = softplus(-scores[..., 0]) + softplus(scores[..., 1:]).sum(-1)
    else:
        each = softplus(scores[..., 1:] - scores[..., :1]).sum(-1)
    return (each * mask).sum(1)
