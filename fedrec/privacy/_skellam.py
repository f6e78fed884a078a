"""Sampling the symmetric Skellam distribution by a table of its cumulative weights, in whole numbers of 2^-63.

P(k) = exp(-v) I_|k|(v) for variance v: the difference of two Poisson variables of mean v / 2 (Skellam 1946). It is
closed under sums, which is what devices need that each add a share of the noise (Agarwal, Kairouz and Liu 2021,
arXiv 2110.04995). A table is built per variance and searched with uniform 63-bit words.

Out of scope: where the words come from (`noise`), and what the noise is worth (`accounting`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused

#: Largest variance of one table (about 10^6 entries); above it several draws of equal variance are added up.
TABLE_VARIANCE = 2.0**33

#: Largest number of draws that are added up for one.
MAX_DRAWS = 64

#: Bound of the total variation distance between a draw and the exact distribution, for one table of the largest
#: size: 10^6 entries rounded to 2^-63, and probabilities whose own errors add up to less than 2^-48. Below variance
#: 10^7 it is under 2^-47; with n draws added up for one, n times as much.
SKELLAM_TABLE_ERROR = 2.0**-44

#: From this variance on the asymptotic series is exact in double precision with four terms.
_SERIES_FROM = 4096.0

Words = Callable[[int], NDArray[np.uint64]]


def draw(words: Words, size: int, variance: float) -> NDArray[np.int64]:
    """[size] Skellam integers.

    Args:
        words: gives the wanted number of independent uniform 64-bit words.
        size: how many.
        variance: of each, at most `MAX_DRAWS` * `TABLE_VARIANCE`; 0 gives zeros.

    Raises:
        PrivacyRefused: the variance is negative, not finite or too large.
    """
    if not (math.isfinite(variance) and 0.0 <= variance <= MAX_DRAWS * TABLE_VARIANCE):
        raise PrivacyRefused(
            f"variance of Skellam noise is {variance}: expected 0 to {MAX_DRAWS * TABLE_VARIANCE:.3g}; "
            "a smaller privacy scale lowers it"
        )
    if variance == 0.0:
        return np.zeros(size, dtype=np.int64)
    n = max(1, math.ceil(variance / TABLE_VARIANCE))
    table = cumulative(variance / n)
    total = _from_table(words(size), table)
    for _ in range(n - 1):
        total += _from_table(words(size), table)
    return total


@functools.lru_cache(maxsize=4)
def cumulative(variance: float) -> NDArray[np.uint64]:
    """[K+1] P(|X| <= k) in units of 2^-63, the last one exactly 2^63; read-only.

    The weights are rounded one by one and added as integers, so errors do not add up along the table.
    """
    weights = 2.0 * probabilities(variance)
    weights[0] /= 2.0
    whole = np.rint(np.ldexp(weights, 63)).astype(np.uint64)
    # Rounding and the tail that was cut off, less than the errors of the others, go to the middle.
    whole[0] = np.uint64(2**63) - whole[1:].sum(dtype=np.uint64)
    table = np.cumsum(whole, dtype=np.uint64)
    table.flags.writeable = False
    return table


def probabilities(variance: float) -> NDArray[np.float64]:
    """[K+1] P(X = k) for k = 0..K, where P(X > K) < 2^-64."""
    k = np.arange(math.ceil(9.6 * math.sqrt(variance)) + 40, dtype=np.float64)
    return _recurrence(len(k), variance) if variance < _SERIES_FROM else _series(k, variance)


def _recurrence(size: int, v: float) -> NDArray[np.float64]:
    """[size] exp(-v) I_k(v) by I_(k-1) = I_(k+1) + (2k / v) I_k, downwards, where it is stable (Miller's algorithm).

    Normalised by I_0 + 2 (I_1 + I_2 + ...) = exp(v) (NIST DLMF 10.35.5): the probabilities of both signs add up to 1.
    """
    start = size + 64
    values, above, here = [0.0] * start, 0.0, 1e-280
    for k in range(start - 1, 0, -1):
        values[k] = here
        above, here = here, above + (2.0 * k / v) * here
        if here > 1e250:
            above, here = above * 1e-250, here * 1e-250
            values[k:] = [each * 1e-250 for each in values[k:]]
    values[0] = here
    found = np.array(values)
    return np.asarray((found / (found[0] + 2.0 * found[1:].sum()))[:size])


def _series(k: NDArray[np.float64], v: float) -> NDArray[np.float64]:
    """exp(-v) I_k(v) by the expansion that is uniform in k (Debye; NIST DLMF 10.41.3), four terms.

    Written in s = sqrt(k^2 + v^2) and q = (k/s)^2, in which it holds at k = 0 too; the exponent is arranged so that
    nothing large cancels. The first term left out is below 2 / s^5.
    """
    t = k / v
    exponent = v * (t * t / (1.0 + np.sqrt(1.0 + t * t)) - t * np.arcsinh(t))
    s = np.hypot(k, v)
    q = np.square(k / s)
    u1 = (3.0 - 5.0 * q) / 24.0
    u2 = (81.0 + q * (-462.0 + q * 385.0)) / 1152.0
    u3 = (30375.0 + q * (-369603.0 + q * (765765.0 - q * 425425.0))) / 414720.0
    u4 = (
        4465125.0 + q * (-94121676.0 + q * (349922430.0 + q * (-446185740.0 + q * 185910725.0)))
    ) / 39813120.0
    terms = 1.0 + (u1 + (u2 + (u3 + u4 / s) / s) / s) / s
    return np.asarray(np.exp(exponent) / np.sqrt(2.0 * np.pi * s) * terms)


def _from_table(words: NDArray[np.uint64], table: NDArray[np.uint64]) -> NDArray[np.int64]:
    """One draw per word: its lowest bit is the sign, the others choose the size."""
    size = np.searchsorted(table, words >> np.uint64(1), side="right")
    sign = 1 - 2 * (words & np.uint64(1)).astype(np.int64)
    return np.asarray(size * sign)
