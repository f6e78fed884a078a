"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient
descent", NeurIPS; arXiv 1703.02757, section 4).

A reply's score is the sum of its squared distances to its m - f - 2 closest others; the replies of the smallest
scores are kept. It compares whole updates, so an update that is wrong in a few coordinates alone can pass, and with
honest nodes that differ much it learns from few of them.

Letters: m replies, f = dishonest m rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.stage import Bound
from fedrec.core.updates import Floats, UpdateSum
from fedrec.rounds.aggregation import AGGREGATION_RULES
from fedrec.rounds.rules._replies import UNBOUNDED, NodeMeans, dishonest_of, has_users, refuse_few


@AGGREGATION_RULES.register("krum")
@dataclass(frozen=True)
class Krum:
    """The mean over the users of the replies that have the closest neighbours.

    Attributes:
        dishonest: share of the nodes that may send anything; m must be at least 2 f + 3.
        keep: how many replies are kept; 1 is Krum, more is Multi-Krum; at most m - f are.
    """

    sees_replies: ClassVar[bool] = True

    dishonest: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.1
    keep: Annotated[int, Field(ge=1)] = 1

    def combine(self, zero: UpdateSum, replies: Sequence[UpdateSum]) -> UpdateSum:
        """See `AggregationRule`.

        Raises:
            AggregationAborted: fewer than 2 f + 3 replies.
        """
        if not has_users(replies):
            return zero
        dishonest = dishonest_of(self.dishonest, replies)
        means = NodeMeans.of(replies, dishonest)
        refuse_few("krum", len(means.users), 2 * dishonest + 3)
        kept = self.kept(means, dishonest)
        return means.summed(means.chosen(kept))

    def kept(self, means: NodeMeans, dishonest: int) -> NDArray[np.bool_]:
        """[m] which replies are; more than `keep` only where scores are equal."""
        scores = krum_scores(means, dishonest)
        keep = min(self.keep, len(scores) - dishonest)
        return np.asarray(scores <= np.sort(scores)[keep - 1])

    def sensitivity(self, bound: Bound) -> Bound:
        """Not bounded: one user can change which replies are kept."""
        return UNBOUNDED


def krum_scores(means: NodeMeans, dishonest: int) -> Floats:
    """[m] sum of squared distances to the m - f - 2 closest others.

    Args:
        means: m replies, at least 2 f + 3.
        dishonest: f.
    """
    size = len(means.users)
    square = np.empty((size, size))
    for k in range(size):
        square[k] = means.squared_distances({name: values[k] for name, values in means.blocks.items()})
    # A reply's distance to itself is the smallest, 0.
    nearest = np.sort(square, axis=1)[:, 1 : size - dishonest - 1]
    return np.asarray(nearest.sum(axis=1))
