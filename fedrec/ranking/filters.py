"""Business rules: what a list must or must not look like, whatever the scores say.

Four of them: `AtMost` so many of a category, `Apart` by so many places, `Pin` an item to a place, `Boost` a category
or an item. Pins come first: `AtMost` and `Apart` count pinned items, above and below, and shut out others in their
favour, never a pinned one. Filters by category, block lists and candidates are plain fields of
`pipeline.RecommendationRequest`.

Letters: m items of a short list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.model import Scorer

#: Places of the longest list.
LONGEST = 10_000


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
        if not 1 <= self.places <= LONGEST:
            raise DataError(f"Apart({self.category!r}, {self.places}): expected 1 to {LONGEST} places")


@dataclass(frozen=True)
class Pin:
    """An item stands at a place, counted from 1, whatever its score; unless it is filtered out.

    It moves up, whatever the other rules say, where nothing else may fill a place above it. Pinned beyond the end of
    the list it is an item like any.
    """

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


def named(rules: tuple[Rule, ...]) -> tuple[str, ...]:
    """Items that rules speak of."""
    return tuple(rule.item for rule in rules if isinstance(rule, Pin | Boost) and rule.item is not None)


def boosts(item_index: ItemIndex[Scorer], rules: tuple[Rule, ...]) -> list[tuple[NDArray[np.int64], float]]:
    """Places and how far their scores move, in standard deviations; items the model does not know are left out."""
    moved = []
    for rule in rules:
        if isinstance(rule, Boost):
            if rule.category is not None:
                moved.append((item_index.members(rule.category), rule.by))
            elif rule.item is not None and (place := item_index.items.index(rule.item)) is not None:
                moved.append((np.array([place]), rule.by))
    return moved


def pins(item_index: ItemIndex[Scorer], rules: tuple[Rule, ...]) -> dict[int, int]:
    """By place in the list from 0, the item.

    Raises:
        DataError: two items for one place, or one item for two.
    """
    found: dict[int, int] = {}
    for rule in rules:
        if isinstance(rule, Pin) and (item := item_index.items.index(rule.item)) is not None:
            if rule.place - 1 in found or item in found.values():
                raise DataError(f"{rule}: the place or the item is pinned already; pin each once")
            found[rule.place - 1] = item
    return found


class Limits:
    """What `AtMost` and `Apart` leave open, given the list so far and the pins to come.

    Args:
        item_index: of the items.
        rules: all of them.
        pinned: by place in the list from 0, the item.
    """

    def __init__(
        self, item_index: ItemIndex[Scorer], rules: tuple[Rule, ...], pinned: Mapping[int, int]
    ) -> None:
        self._rules = [rule for rule in rules if isinstance(rule, AtMost | Apart)]
        self.categories = [rule.category for rule in self._rules]
        self._item_index = item_index
        self._taken: list[set[int]] = [set() for _ in self._rules]
        for name in self.categories:
            item_index.members(name)  # an unknown one is an error in every list
        for place, item in pinned.items():
            self.put(item, place)

    def put(self, item: int, place: int) -> None:
        """An item stands at a place."""
        names = self._item_index.items.categories[item]
        for rule, taken in zip(self._rules, self._taken, strict=True):
            if rule.category in names:
                taken.add(place)

    def move(self, old: int, new: int) -> None:
        """What stood at a place stands at another."""
        for taken in self._taken:
            if old in taken:
                taken.remove(old)
                taken.add(new)

    def shut(self, place: int) -> NDArray[np.bool_]:
        """[rules] whether a rule keeps its category from a place."""
        return np.array(
            [
                len(taken) >= rule.count
                if isinstance(rule, AtMost)
                else not taken.isdisjoint(range(place - rule.places + 1, place + rule.places))
                for rule, taken in zip(self._rules, self._taken, strict=True)
            ],
            dtype=bool,
        )
