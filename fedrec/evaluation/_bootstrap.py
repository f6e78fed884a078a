"""Intervals from sums: the Poisson bootstrap.

A resample of the users is a weight for every user. With independent Poisson(1) weights instead of
multinomial ones each node can weigh its own users without knowing the others, and the replicates merge by
addition (Chamandy et al. 2012, "Estimating uncertainty for massive data streams", Google technical report).
The weights are a hash of (seed, user), so the same users get the same weights however they are spread over
nodes.

Letters: U users, B replicates.
"""

from __future__ import annotations

from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import IntArray
from fedrec.core.randomness import Purpose, key, uniform, user_keys

#: Distribution function of Poisson(1); beyond 19 its tail is below the 2^-53 of a uniform draw.
POISSON_CDF = np.cumsum([exp(-1) / factorial(j) for j in range(20)])
#: The largest weight that can be drawn.
MAX_WEIGHT = len(POISSON_CDF)
#: Bounds of the 95 percent percentile interval.
QUANTILES = (0.025, 0.975)


def replicate_weights(users: IntArray, replicates: int, seed: int) -> NDArray[np.float64]:
    """[U, 1 + B] weight of every user (keys [U]) in every replicate; column 0, all ones, is the data."""
    draws = uniform(user_keys(key(seed, Purpose.BOOTSTRAP), users), replicates)
    weights = np.searchsorted(POISSON_CDF, draws, side="right").astype(np.float64)
    return np.concatenate([np.ones((len(users), 1)), weights], axis=1)


def interval(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 percent percentile interval of a mean from its replicates.

    Args:
        sums: [B] weighted sums of the metric.
        weights: [B] sums of the weights; a replicate without any user is left out.

    None without a usable replicate.
    """
    usable = weights > 0
    if not usable.any():
        return None
    low, high = np.quantile(sums[usable] / weights[usable], QUANTILES)
    return float(low), float(high)
