"""Fills the places of a list one after the other: pins, then the short list in its order, then the whole catalogue.

A place takes the first item of the short list that the rules allow there, or one that an explorer draws. Where the
rules shut out all of the short list, the best of the whole catalogue that they allow takes the place: rules shorten
a list only when nothing is left. The short list is settled before any coin is thrown, so that propensities are exact.

Letters: I items, m of the short list, n wanted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.exploration import Explorer
from fedrec.ranking.filters import Limits
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.model import Scorer
from fedrec.ranking.top_scores import top_k

Places = NDArray[np.int64]


class Placed(NamedTuple):
    """An item, the probability of it at this place given those above, and whether "score", "coin" or "pin" put it."""

    item: int
    chance: float
    by: str


class Backfill:
    """One list in the making.

    Args:
        item_index: model and items.
        scores: [I] -inf for what must not appear.
        pool: [m] the short list, in the order in which it fills places.
        pinned: by place from 0, the item; none of them in the short list.
        limits: with these pins.
        explorer: None: by score alone.
    """

    def __init__(
        self,
        item_index: ItemIndex[Scorer],
        scores: NDArray[np.float32],
        pool: Places,
        pinned: dict[int, int],
        limits: Limits,
        explorer: Explorer | None,
    ) -> None:
        self._item_index, self._scores, self._pool = item_index, scores, pool
        self._pinned, self._limits, self._explorer = dict(sorted(pinned.items())), limits, explorer
        self._taken = list(pinned.values())
        self._in = item_index.membership(pool, limits.categories)
        self._left = np.ones(len(pool), bool)
        self._far: NDArray[np.float32] | None = None

    def placed(self, n: int) -> list[Placed]:
        """At most n places, from the top."""
        if not self._pinned and not self._limits.categories and self._explorer is None:
            return [Placed(item, 1.0, "score") for item in self._pool[:n].tolist()]
        out: list[Placed] = []
        while len(out) < n and (found := self._next(len(out))) is not None:
            out.append(found)
        return out

    def _next(self, place: int) -> Placed | None:
        if place in self._pinned:
            return self._pin(place, place)
        shut = self._limits.shut(place)
        free = np.flatnonzero(self._left & ~self._in[:, shut].any(axis=1) if shut.any() else self._left)
        if len(free):
            found = self._near(free, place)
        elif (far := self._best_beyond(shut)) is not None:
            found = Placed(far, 1.0, "score")
        elif self._pinned:
            return self._pin(next(iter(self._pinned)), place)
        else:
            return None
        self._limits.put(found.item, place)
        return found

    def _pin(self, meant: int, place: int) -> Placed:
        if meant != place:
            self._limits.move(meant, place)
        return Placed(self._pinned.pop(meant), 1.0, "pin")

    def _near(self, free: Places, place: int) -> Placed:
        pick, chance = (int(free[0]), 1.0) if self._explorer is None else self._explorer.choose(free, place)
        self._left[pick] = False
        return Placed(int(self._pool[pick]), chance, "score" if pick == free[0] else "coin")

    def _best_beyond(self, shut: NDArray[np.bool_]) -> int | None:
        """The best item that is neither on the short list nor in a category that is shut."""
        if self._far is None:
            self._far = self._scores.copy()
            self._far[self._pool] = -np.inf
            self._far[self._taken] = -np.inf
        closed = [self._item_index.members(self._limits.categories[k]) for k in np.flatnonzero(shut)]
        kept = [self._far[members] for members in closed]
        for members in closed:
            self._far[members] = -np.inf
        found = top_k(self._far, 1, self._item_index.items.popularity)
        for members, values in zip(closed, kept, strict=True):
            self._far[members] = values
        if not len(found):
            return None
        self._far[found] = -np.inf
        return int(found[0])
