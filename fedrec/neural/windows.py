"""Windows of histories: consecutive events, right-aligned, and what a model of the next item learns from one.

Letters: K users, L events of a window, R width of a review's vector, n negatives.
Out of scope: which models read them (`sequence`), losses (`sequence_task`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.recommender import Scores

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Windows:
    """Right-aligned pieces of K histories.

    Attributes:
        item: [K, L] 0 where there is none.
        real: [K, L].
        review: [K, L, R] zeros where nothing was written; None: not known, or not read.
    """

    item: IntArray
    real: Mask
    review: Scores | None = None

    @property
    def length(self) -> int:
        """L."""
        return int(self.item.shape[1])


@dataclass(frozen=True)
class Lesson:
    """What is read and what is to be told from it, every array [K, L, ...].

    Attributes:
        read: items that go in.
        target: items that are asked for, position by position.
        real: where an input event is.
        learned: where a target is asked for.
        hidden: where the input event is replaced by the hidden item's vector; None: nowhere.
        review: what was written about the input events; None: nothing is read of it.
    """

    read: IntArray
    target: IntArray
    real: Mask
    learned: Mask
    hidden: Mask | None = None
    review: Scores | None = None


def windows_of(batch: UserBatch, length: int, starts: IntArray | None = None, least: int = 1) -> Windows:
    """At most `length` consecutive events of each user, the latest ones unless `starts` [K] says where they begin.

    `least` columns there are in any case.
    """
    counts = np.minimum(batch.counts, length)
    first = batch.counts - counts if starts is None else starts
    width = int(counts.max(initial=least))
    column = np.arange(width) - (width - counts)[:, None]
    real = column >= 0
    item = np.zeros(real.shape, dtype=np.int64)
    where = ((batch.indptr[:-1] + first)[:, None] + column)[real]
    item[real] = batch.item[where]
    if batch.review is None:
        return Windows(item, real)
    review = np.zeros((*real.shape, batch.review.shape[1]), dtype=np.float32)
    review[real] = batch.review[where]
    return Windows(item, real, review)


def log_share(n_items: int, negatives: int) -> float:
    """What a sampled item's score is raised by: the log of how many items it stands for."""
    return log(max(n_items - 1, 1) / negatives)
