"""Work on item rows that are made, in whole or in part, of public vectors as they are needed.

Letters: K users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.neural.support_query import halved

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Work


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
