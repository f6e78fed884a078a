"""From scores to the rank of every held-out item: the one place where ties are decided.

Every rule here goes against the recommender: an candidate with the same score counts as better, a missing
score (NaN) as the lowest one. So a model that gives all items one score comes last, not first.

Letters: U users, I items, N held-out items of all users, M candidates.
Out of scope: what a rank is worth (`fedrec.evaluation.metrics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import IntArray, UserBatch

Floating = NDArray[np.floating]


@dataclass(frozen=True)
class Ranks:
    """Ranks of the held-out items of U users; user u owns entries `indptr[u]:indptr[u+1]`.

    Attributes:
        indptr: [U+1] int64, as in the batch of held-out items.
        rank: [N] int64, 1 is best, in the order of that batch; different within a user.
        candidates: [U] int64, how many items that are not held out were ranked with them.
    """

    indptr: IntArray
    rank: IntArray
    candidates: IntArray

    @property
    def held(self) -> IntArray:
        """[U] held-out items of each user."""
        return np.diff(self.indptr)

    @property
    def row(self) -> IntArray:
        """[N] the user of each entry."""
        return np.repeat(np.arange(len(self.held), dtype=np.int64), self.held)


def check_batches(scores: Floating, history: UserBatch, target: UserBatch) -> None:
    """Refuse scores, histories and held-out items that do not belong together.

    Raises:
        DataError: different users, an item outside the scores, an item held out twice from one user.
    """
    if scores.ndim != 2 or len(scores) != len(history):
        raise DataError(f"scores of shape {scores.shape}: expected one row for each of {len(history)} users")
    if not np.array_equal(history.user, target.user):
        raise DataError(
            "history and held-out items are of different users: give both for the same users in one order"
        )
    n_items = scores.shape[1]
    for name, items in (("history", history.item), ("held-out", target.item)):
        if len(items) and not 0 <= items.min() <= items.max() < n_items:
            raise DataError(
                f"a {name} item lies outside the {n_items} scored ones: score the whole catalogue"
            )
    pairs = np.sort(target.row * n_items + target.item)
    twice = pairs[:-1][np.diff(pairs) == 0]
    if len(twice):
        user, item = target.user[twice[0] // n_items], twice[0] % n_items
        raise DataError(f"item {item} is held out twice from user {user}: remove duplicates before splitting")


def lowest_where_missing(scores: Floating) -> tuple[Floating, NDArray[np.bool_]]:
    """The scores with -inf for NaN, and [U] who had any NaN (such users are reported)."""
    missing = np.isnan(scores)
    users = np.asarray(missing.any(axis=1))
    filled: Floating = np.where(missing, np.float32(-np.inf), scores) if users.any() else scores
    return filled, users


def full_ranks(scores: Floating, forbidden: NDArray[np.bool_], target: UserBatch) -> Ranks:
    """Ranks among all items that the user has not seen.

    Args:
        scores: [U, I] without NaN (`lowest_where_missing`), higher is better.
        forbidden: [U, I] seen and held-out items (`fedrec.evaluation._candidates.not_candidates`).
        target: the held-out items; a held-out item is ranked even if it stands in the history, too.
    """
    candidates = np.where(forbidden, np.float32(np.nan), scores)
    return _rank_among(candidates, (~forbidden).sum(axis=1), scores[target.row, target.item], target.indptr)


def sampled_ranks(scores: Floating, candidates: IntArray, target: UserBatch) -> Ranks:
    """Ranks among given candidates and the user's other held-out items.

    Args:
        scores: [U, I] without NaN, higher is better.
        candidates: [U, n] items, -1 for none (`fedrec.evaluation._candidates.draw_candidates`).
        target: the held-out items, none of which may be among the candidates.
    """
    present = candidates >= 0
    drawn = np.take_along_axis(scores, np.where(present, candidates, 0), axis=1)
    others = np.where(present, drawn, np.float32(np.nan))
    return _rank_among(others, present.sum(axis=1), scores[target.row, target.item], target.indptr)


def _rank_among(candidates: Floating, n_candidates: IntArray, held: Floating, indptr: IntArray) -> Ranks:
    """Ranks of items with scores `held` [N] among `candidates` [U, M], where NaN stands for no candidate.

    Rank = 1 + candidates that are not worse + the user's own held-out items that are better. Held-out items
    with equal scores take consecutive ranks: which of them comes first changes no metric.
    """
    counts = np.diff(indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    not_worse = np.zeros(len(held), dtype=np.int64)
    for j in range(int(counts.max(initial=0))):
        users = np.flatnonzero(counts > j)
        rows = candidates if len(users) == len(candidates) else candidates[users]
        entry = indptr[users] + j
        not_worse[entry] = np.count_nonzero(rows >= held[entry][:, None], axis=1)
    order = np.lexsort((-held, row))
    place = np.empty(len(held), dtype=np.int64)
    place[order] = np.arange(len(held)) - indptr[row]
    return Ranks(indptr, 1 + place + not_worse, n_candidates.astype(np.int64))
