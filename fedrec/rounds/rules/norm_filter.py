"""Norm filtering: replies whose mean is much longer than the median length are left out.

It stops boosted updates ("model replacement", Bagdasaryan et al. 2020, "How to backdoor federated learning", AISTATS;
arXiv 1807.00459), which a bound on norms stops as well (Sun et al. 2019, "Can you really backdoor federated
learning?", arXiv 1911.07963, section 4), without a clip norm to choose. A wrong update of usual length passes.

Letters: m replies, f = dishonest m rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedrec.core.stage import Bound
from fedrec.core.updates import UpdateSum
from fedrec.rounds.aggregation import AGGREGATION_RULES
from fedrec.rounds.rules._replies import UNBOUNDED, NodeMeans, dishonest_of, has_users


@AGGREGATION_RULES.register("norm_filter")
@dataclass(frozen=True)
class NormFilter:
    """The sum of the replies that are not too long.

    Attributes:
        factor: a reply's mean may be this many times as long as the median one.
        dishonest: share of the nodes whose stated numbers of users are not relied on.
    """

    sees_replies: ClassVar[bool] = True

    factor: Annotated[float, Field(ge=1.0)] = 2.0
    dishonest: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.1

    def combine(self, zero: UpdateSum, replies: Sequence[UpdateSum]) -> UpdateSum:
        """See `AggregationRule`."""
        if not has_users(replies):
            return zero
        means = NodeMeans.of(replies, dishonest_of(self.dishonest, replies))
        norms = np.sqrt(means.squared_norms())
        # The lower median: at most half of the nodes are above it, however few there are.
        usual = np.sort(norms)[(len(norms) - 1) // 2]
        kept = norms <= self.factor * usual
        return means.summed(means.chosen(kept), kept)

    def sensitivity(self, bound: Bound) -> Bound:
        """Not bounded: one user can change which replies are left out."""
        return UNBOUNDED
