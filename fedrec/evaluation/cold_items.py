"""Items that no training has seen: a share of the catalogue is removed, and only that share is ranked.

The interactions with the removed items are the targets, whichever part of a split they stood in; a model learns from
the rest and knows the removed items by their public features alone. Removed items are drawn among those with some
interactions, because an item that no one touched asks nothing.

Letters: U users, I items, C cold items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.randomness import Purpose, bits, key, user_keys
from fedrec.data.split import Split
from fedrec.evaluation._bootstrap import interval, replicate_weights
from fedrec.evaluation.metrics import capped_recall
from fedrec.evaluation.ranks import check_batches, full_ranks, lowest_where_missing

#: Keeps this draw apart from those of `fedrec.data.splits`.
COLD_STREAM = 2


@dataclass(frozen=True)
class ColdSplit:
    """A data set without its cold items, and what was taken away.

    Attributes:
        warm: no interaction with a cold item in any part; ids and numbering as before, so that item features fit.
        target: every interaction with a cold item, each pair of user and item once.
        items: [C] int64, the cold items, ascending.
    """

    warm: Split
    target: Interactions
    items: IntArray

    @property
    def users(self) -> IntArray:
        """[V] users who are evaluated: something cold is asked of them, and something warm is known."""
        return np.flatnonzero((self.target.counts > 0) & (self.warm.history("refit").counts > 0))


@dataclass(frozen=True)
class ColdRecall:
    """Recall@k among the cold items alone, mean over the evaluated users.

    Attributes:
        value: mean of #{targets in the first k} / min(targets, k).
        low, high: bounds of the 95 % interval (bootstrap over users).
        users: how many were evaluated.
        chance: what a random order reaches in expectation.
    """

    value: float
    low: float
    high: float
    users: int
    chance: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.users} users; chance {self.chance:.3f})"


def cold_split(
    source: Interactions | Split, fraction: float = 0.1, seed: int = 0, min_interactions: int = 5
) -> ColdSplit:
    """Take a share of the items out.

    Args:
        source: whole interactions, or a split: cold items leave all its parts, which keep their roles.
        fraction: share of the eligible items.
        seed: which ones; the draw of an item depends on nothing but seed and index.
        min_interactions: an item is eligible with at least so many, over all parts.

    Raises:
        ConfigError: `fraction` lies outside (0, 1).
        DataError: so few items are eligible that none is drawn, or nothing warm is left to learn from.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction}: expected a share of the items between 0 and 1")
    split = source if isinstance(source, Split) else Split(source, None, None)
    everything = _everything(split)
    eligible = np.flatnonzero(everything.item_counts >= max(min_interactions, 1))
    items = _draw(eligible, round(fraction * len(eligible)), seed)
    cold = np.zeros(everything.n_items, dtype=bool)
    cold[items] = True
    warm = _without(split, cold)
    if not len(items) or not len(warm.train):
        raise DataError(
            f"{len(eligible)} items have {min_interactions} interactions: a share of {fraction} leaves no cold item, "
            "or nothing to learn from; lower min_interactions or change the share"
        )
    return ColdSplit(warm, _distinct(everything.select(cold[everything.item])), items)


def cold_recall(
    scores: NDArray[np.floating],
    split: ColdSplit,
    k: int = 20,
    replicates: int = 1000,
    seed: int = 0,
    users: IntArray | None = None,
) -> ColdRecall:
    """Recall@k when only the cold items are ranked, ties against the model (as in all of `fedrec.evaluation`).

    Args:
        scores: [V, I], or [V, C] in the order of `split.items`.
        split: of `cold_split`.
        k: length of the list.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        users: [V] the rows of `scores`; None: all users. Those of whom nothing cold is asked are left out.

    Raises:
        DataError: the scores are of other users or items, or no one is evaluated.
    """
    users = np.arange(split.target.n_users, dtype=np.int64) if users is None else users
    if scores.ndim != 2 or scores.shape[1] not in (len(split.items), split.target.n_items):
        raise DataError(
            f"scores of shape {scores.shape}: expected a row per user, and {len(split.items)} cold or all "
            f"{split.target.n_items} items"
        )
    if len(scores) != len(users):
        raise DataError(f"{len(scores)} rows of scores for {len(users)} users: give one for each")
    evaluated = np.isin(users, split.users)
    if not evaluated.any():
        raise DataError("none of these users has interactions with cold items: nothing can be evaluated")
    cold = scores[evaluated] if scores.shape[1] == len(split.items) else scores[evaluated][:, split.items]
    target = _among_cold(split, users[evaluated])
    history = UserBatch(target.user, np.zeros(len(target) + 1, np.int64), target.item[:0], target.value[:0])
    check_batches(cold, history, target)
    forbidden = np.zeros(cold.shape, dtype=bool)
    forbidden[target.row, target.item] = True
    recalls = capped_recall(full_ranks(lowest_where_missing(cold)[0], forbidden, target), k)
    weights = replicate_weights(target.user, replicates, seed)[:, 1:]
    mean = float(recalls.mean())
    low, high = interval(recalls @ weights, weights.sum(axis=0)) or (mean, mean)
    return ColdRecall(mean, low, high, len(recalls), _chance(target.counts, len(split.items), k))


def _chance(held: IntArray, n_items: int, k: int) -> float:
    """Expected capped recall of a random order."""
    hits = held * min(k / n_items, 1.0)
    return float(np.mean(hits / np.minimum(held, k)))


def _draw(eligible: IntArray, n: int, seed: int) -> IntArray:
    """The n items with the smallest hashes, ascending."""
    draw = bits(user_keys(key(seed, Purpose.SPLIT, COLD_STREAM), eligible), 1)[:, 0]
    return np.sort(eligible[np.argsort(draw, kind="stable")[:n]])


def _everything(split: Split) -> Interactions:
    """All parts of a split as one."""
    out = split.train
    for part in (split.support, split.validation, split.test):
        out = out if part is None else out.merge(part)
    return out


def _without(split: Split, cold: NDArray[np.bool_]) -> Split:
    """All parts without the items marked in `cold` [I]."""
    parts = (split.train, split.validation, split.test, split.support)
    train, validation, test, support = (
        None if part is None else part.select(~cold[part.item]) for part in parts
    )
    assert train is not None
    return Split(train, validation, test, support, split.user_key)


def _distinct(interactions: Interactions) -> Interactions:
    """Each pair of user and item once, its first interaction."""
    pairs = interactions.user * interactions.n_items + interactions.item
    first = np.zeros(len(pairs), dtype=bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    return interactions.select(first)


def _among_cold(split: ColdSplit, users: IntArray) -> UserBatch:
    """What is asked of the given users, items numbered among the cold ones."""
    batch = split.warm.batch(split.target).take(users)
    return replace(batch, item=np.searchsorted(split.items, batch.item).astype(np.int64))
