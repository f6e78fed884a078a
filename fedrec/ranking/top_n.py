"""The best n items of every user: exact, deterministic, numpy only.

Equal scores are ordered by item index, the smaller first. An item with score -inf or NaN is never
recommended: that is how a filter removes it. Out of scope: where scores come from, and evaluation (there
ties go against us).

Letters: U users, I items, n list length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import IntArray, UserBatch

Floating = NDArray[np.floating]


def top_n(scores: Floating, n: int, exclude: UserBatch | None = None) -> tuple[IntArray, Floating]:
    """The n best items of each user, best first.

    Args:
        scores: [U, I] higher is better.
        n: list length, at least 1.
        exclude: items that must not appear (usually the history), same users in the same order.

    Returns:
        items [U, n], -1 where a user has fewer than n items to recommend, and their scores [U, n], -inf
        there.

    Raises:
        DataError: `n` is below 1, or `exclude` does not fit the scores.
    """
    if n < 1:
        raise DataError(f"list length n={n}: expected at least 1")
    usable = _usable(scores, exclude)
    width = min(n, scores.shape[1])
    items = _unordered_top(usable, width) if width < scores.shape[1] else _everything(scores.shape)
    # Ascending items and a stable sort: the smaller index goes first among equal scores.
    items = np.sort(items, axis=1)
    order = np.argsort(-np.take_along_axis(usable, items, axis=1), axis=1, kind="stable")
    items = np.take_along_axis(items, order, axis=1)
    values = np.take_along_axis(usable, items, axis=1)
    items = np.where(values == -np.inf, -1, items)
    return _pad(items, n, -1), _pad(values, n, -np.inf)


def rank_all(scores: Floating, exclude: UserBatch | None = None) -> tuple[IntArray, Floating]:
    """Every item that may be recommended, best first: `top_n` with n = I."""
    return top_n(scores, max(scores.shape[1], 1), exclude)


def _usable(scores: Floating, exclude: UserBatch | None) -> Floating:
    """A copy of the scores with -inf for what must not appear."""
    if scores.ndim != 2:
        raise DataError(f"scores of shape {scores.shape}: expected two axes, users and items")
    usable = np.where(np.isnan(scores), -np.inf, scores)
    if exclude is not None:
        if len(exclude) != len(scores):
            raise DataError(f"{len(exclude)} histories for {len(scores)} rows of scores: give one for each")
        if len(exclude.item) and not 0 <= exclude.item.min() <= exclude.item.max() < scores.shape[1]:
            raise DataError(
                f"an excluded item lies outside the {scores.shape[1]} scored ones: score all items"
            )
        usable[exclude.row, exclude.item] = -np.inf
    return usable


def _unordered_top(usable: Floating, n: int) -> IntArray:
    """[U, n] the best n < I items in any order; at the cut-off the smaller index wins."""
    n_items = usable.shape[1]
    items = np.argpartition(usable, n_items - n, axis=1)[:, n_items - n :].astype(np.int64)
    # The partition chooses freely among items that tie with the last one: such rows are chosen again.
    last = np.take_along_axis(usable, items[:, :1], axis=1)
    for row in np.flatnonzero((usable >= last).sum(axis=1) > n):
        better = np.flatnonzero(usable[row] > last[row])
        tied = np.flatnonzero(usable[row] == last[row])
        items[row] = np.concatenate([better, tied[: n - len(better)]])
    return items


def _everything(shape: tuple[int, ...]) -> IntArray:
    return np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape)


def _pad(values: NDArray[Any], n: int, fill: float) -> NDArray[Any]:
    missing = n - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=fill) if missing else values
