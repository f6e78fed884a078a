"""Business rules: what a list must or must not look like, whatever the scores say.

Four of them: `AtMost` so many of a category, `Apart` by so many places, `Pin` an item to a place, `Boost` a category
or an item. Filters by category, block lists and candidates are plain fields of `pipeline.Wanted`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import DataError
from fedrec.ranking.shelf import Shelf


@dataclass(frozen=True)
class AtMost:
    """At most `count` items of a category in a list."""

    category: str
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise DataError(f"AtMost({self.category!r}, {self.count}): expected a count from 0")


@dataclass(frozen=True)
class Apart:
    """Two items of a category stand at least `places` apart."""

    category: str
    places: int

    def __post_init__(self) -> None:
        if self.places < 1:
            raise DataError(f"Apart({self.category!r}, {self.places}): expected at least 1 place")


@dataclass(frozen=True)
class Pin:
    """An item stands at a place, counted from 1, whatever its score; not where it is filtered out."""

    item: str
    place: int

    def __post_init__(self) -> None:
        if self.place < 1:
            raise DataError(f"Pin({self.item!r}, {self.place}): expected a place from 1")


@dataclass(frozen=True)
class Boost:
    """Scores of a category or an item are moved by `by` standard deviations of all scores; below 0 buries.

    Exactly one of `category` and `item` is given.
    """

    by: float
    category: str | None = None
    item: str | None = None

    def __post_init__(self) -> None:
        if (self.category is None) == (self.item is None) or not np.isfinite(self.by):
            raise DataError(f"{self}: expected a finite `by`, and either a category or an item")


Rule = AtMost | Apart | Pin | Boost


def boosts(shelf: Shelf, rules: tuple[Rule, ...]) -> list[tuple[NDArray[np.int64], float]]:
    """Places and how far their scores move, in standard deviations; items the model does not know are left out."""
    moved = []
    for rule in rules:
        if isinstance(rule, Boost):
            if rule.category is not None:
                moved.append((shelf.members(rule.category), rule.by))
            elif rule.item is not None and (place := shelf.items.index(rule.item)) is not None:
                moved.append((np.array([place]), rule.by))
    return moved


def pins(shelf: Shelf, rules: tuple[Rule, ...]) -> dict[int, int]:
    """By place in the list from 0, the item.

    Raises:
        DataError: two items for one place, or one item for two.
    """
    found: dict[int, int] = {}
    for rule in rules:
        if isinstance(rule, Pin) and (item := shelf.items.index(rule.item)) is not None:
            if rule.place - 1 in found or item in found.values():
                raise DataError(f"{rule}: the place or the item is pinned already; pin each once")
            found[rule.place - 1] = item
    return found


class Limits:
    """Which items of a pool may come next, given the list so far.

    Args:
        shelf: of the items.
        rules: of which `AtMost` and `Apart` count.
        pool: [m] places of the items.
    """

    def __init__(self, shelf: Shelf, rules: tuple[Rule, ...], pool: NDArray[np.int64]) -> None:
        self._rules = [rule for rule in rules if isinstance(rule, AtMost | Apart)]
        for rule in self._rules:
            shelf.members(rule.category)
        self._in = shelf.membership(pool, [rule.category for rule in self._rules])
        self._seen = np.zeros(len(self._rules), np.int64)
        self._last = np.full(len(self._rules), -(1 << 40))
        self._shelf = shelf

    def allowed(self, place: int) -> NDArray[np.bool_]:
        """[m] whether an item may stand at this place of the list."""
        if not self._rules:
            return np.ones(len(self._in), bool)
        shut = [
            self._seen[k] >= rule.count if isinstance(rule, AtMost) else place - self._last[k] < rule.places
            for k, rule in enumerate(self._rules)
        ]
        return np.asarray(~self._in[:, np.array(shut)].any(axis=1))

    def put(self, item: int, place: int) -> None:
        """An item stands at a place."""
        names = self._shelf.items.categories[item]
        for k, rule in enumerate(self._rules):
            if rule.category in names:
                self._seen[k] += 1
                self._last[k] = place
