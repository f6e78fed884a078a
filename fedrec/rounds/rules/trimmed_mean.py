"""Coordinate-wise trimmed mean and median of the nodes' means (Yin et al. 2018, "Byzantine-robust distributed
learning: towards optimal statistical rates", ICML; arXiv 1803.01498, definitions 1 and 2).

Each coordinate loses its f smallest and f largest values; what is left is between honest values, whatever f nodes
send. The price is bias where honest nodes differ: a coordinate that few nodes touch is zero in the median, so item
tables want nodes of many users.

Letters: m replies, f = trim m rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedrec.core.stage import Bound
from fedrec.core.updates import Floats, UpdateSum
from fedrec.rounds.aggregation import AGGREGATION_RULES
from fedrec.rounds.rules._replies import UNBOUNDED, NodeMeans, dishonest_of, has_users, refuse_few


@AGGREGATION_RULES.register("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate's middle values, weighted by users.

    Attributes:
        trim: share of the replies that is left out on each side.
    """

    sees_replies: ClassVar[bool] = True

    trim: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.1

    def combine(self, zero: UpdateSum, replies: Sequence[UpdateSum]) -> UpdateSum:
        """See `AggregationRule`.

        Raises:
            AggregationAborted: nothing would be left of so few replies.
        """
        if not has_users(replies):
            return zero
        trimmed = dishonest_of(self.trim, replies)
        means = NodeMeans.of(replies, trimmed)
        refuse_few("trimmed_mean", len(means.users), 2 * trimmed + 1)
        return means.summed(
            {name: middle(values, means.users, trimmed) for name, values in means.blocks.items()}
        )

    def sensitivity(self, bound: Bound) -> Bound:
        """Not bounded: one user can change which values are left out."""
        return UNBOUNDED


@AGGREGATION_RULES.register("median")
@dataclass(frozen=True)
class Median:
    """The median of each coordinate; every node counts alike."""

    sees_replies: ClassVar[bool] = True

    def combine(self, zero: UpdateSum, replies: Sequence[UpdateSum]) -> UpdateSum:
        """See `AggregationRule`."""
        if not has_users(replies):
            return zero
        means = NodeMeans.of(replies, (sum(reply.users > 0 for reply in replies) - 1) // 2)
        return means.summed(
            {name: np.asarray(np.median(values, axis=0)) for name, values in means.blocks.items()}
        )

    def sensitivity(self, bound: Bound) -> Bound:
        """Not bounded: one user can change which node is in the middle."""
        return UNBOUNDED


def middle(values: Floats, users: Floats, trimmed: int) -> Floats:
    """[...] weighted mean of each coordinate without its `trimmed` smallest and largest values.

    Args:
        values: [m, ...].
        users: [m] weights.
        trimmed: f, below m / 2.
    """
    if not trimmed:
        return np.asarray(np.tensordot(users / users.sum(), values, axes=1))
    order = np.argsort(values, axis=0, kind="stable")[trimmed : len(values) - trimmed]
    kept, weights = np.take_along_axis(values, order, axis=0), users[order]
    # A mean of equal values must be that value, so means are taken around the first one.
    first = kept[0]
    return np.asarray(first + ((kept - first) * weights).sum(axis=0) / weights.sum(axis=0))
