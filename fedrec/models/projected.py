"""Work on item rows that are made, in whole or in part, of public vectors as they are needed.

Letters: K users, S rows, F width of the public vectors, d embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.learning.updates import State
from fedrec.models.halves import halved
from fedrec.models.neural import FEATURES

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.learning.batched import Params, Touched, Work


@dataclass(frozen=True)
class Projected:
    """Another work, whose parameters are completed by `project` in front of every loss."""

    inner: Work
    project: Callable[[Params], Params]

    @property
    def steps(self) -> int:
        """Of the other work."""
        return self.inner.steps

    @property
    def examples(self) -> NDArray[np.float64]:
        """Of the other work."""
        return self.inner.examples

    def active(self, step: int) -> Tensor | None:
        """Of the other work."""
        return self.inner.active(step)

    def half(self, *, newer: bool) -> Projected:
        """Of the other work."""
        return replace(self, inner=halved(self.inner, newer=newer))

    def loss(self, params: Params, step: int) -> Tensor:
        """[K] of the other work."""
        return self.inner.loss(self.project(params), step)


def row_features(shared: State, touched: Touched | None, n_users: int) -> Tensor:
    """[K, S, F] public vectors of the rows that each user touches; a view of all of them where that is all."""
    import torch

    if touched is None:
        everything = torch.from_numpy(shared[FEATURES])
        return everything.expand(n_users, *everything.shape)
    rows, real = touched.padded()
    # Rows that are only padding may lie where nobody has looked.
    picked = np.zeros((*rows.shape, shared[FEATURES].shape[1]), dtype=np.float32)
    picked[real] = shared[FEATURES][rows[real]]
    return torch.from_numpy(picked)
