"""The best n of one user's scores: exact, and fast enough for a million items between two frames of a screen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
#: Scores per column when the n-th highest is bounded from below by the highest of columns.
DEPTH = 32


def top_k(scores: NDArray[np.floating], n: int, then: NDArray[np.floating] | None = None) -> Places:
    """Places of the n highest scores, best first; equal ones by `then`, and by place, the smaller first.

    Args:
        scores: [I]; -inf and NaN are never chosen.
        n: at most so many.
        then: [I] among equal scores the higher goes first; None: place alone decides.

    Returns:
        [m], m <= n, fewer where fewer can be chosen.
    """
    if n < 1:
        return np.zeros(0, np.int64)
    places = _contenders(scores, n)
    places = places[scores[places] > -np.inf]
    if len(places) > n:
        places = _cut(scores, places, n, then)
    keys = (-scores[places],) if then is None else (-then[places], -scores[places])
    return places[np.lexsort(keys)]


def _contenders(scores: NDArray[np.floating], n: int) -> Places:
    """Ascending places, the n best among them.

    The n-th highest of column maxima is reached by n scores at least: whatever is below it is not among the n best.
    """
    width = len(scores) // DEPTH
    if 2 * n > width:
        return np.arange(len(scores))
    columns = scores[: width * DEPTH].reshape(DEPTH, width)
    highest = np.partition(columns.max(axis=0), width - n)[width - n :]
    if np.isnan(highest).any():  # NaN counts as highest and would hide the scores of its column
        highest = np.partition(np.fmax.reduce(columns, axis=0, initial=-np.inf), width - n)[width - n :]
    return np.flatnonzero(scores >= highest[0])


def _cut(scores: NDArray[np.floating], places: Places, n: int, then: NDArray[np.floating] | None) -> Places:
    """n of more than n ascending places; they stay ascending."""
    values = scores[places]
    last = np.partition(values, len(values) - n)[len(values) - n]
    better, tied = places[values > last], places[values == last]
    wanted = n - len(better)
    if then is not None and len(tied) > wanted:
        tied = tied[top_k(np.nan_to_num(then[tied]), wanted)]
    return np.sort(np.concatenate([better, tied[:wanted]]))
