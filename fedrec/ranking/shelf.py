"""What lists need of a model and its items, computed once per model: categories, popularity, newness.

Out of scope: anything about a person.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import DataError
from fedrec.ranking.items import Items
from fedrec.ranking.serving import ServingModel

DAY = 86_400.0


class Shelf:
    """A model with its items, ready to make lists; immutable, safe for several threads.

    Args:
        model: that scores.
        items: in the order of its tables.
        trained: how many of them the model was trained on; the others came later.

    Raises:
        DataError: model and items are of different numbers.
    """

    def __init__(self, model: ServingModel, items: Items) -> None:
        if model.n_items != len(items):
            raise DataError(
                f"a model of {model.n_items} items with {len(items)} items: give those of its tables"
            )
        self.model, self.items = model, items
        inner = getattr(model, "inner", model)
        self.trained: int = inner.n_items if model.kind == "with_cold_items" else model.n_items

    @cached_property
    def _members(self) -> dict[str, NDArray[np.int64]]:
        lists: dict[str, list[int]] = {}
        for place, names in enumerate(self.items.categories):
            for name in names:
                lists.setdefault(name, []).append(place)
        return {name: np.array(places, dtype=np.int64) for name, places in lists.items()}

    def members(self, category: str) -> NDArray[np.int64]:
        """Places of the items of a category.

        Raises:
            DataError: no item has it; with the nearest name.
        """
        if category not in self._members:
            near = difflib.get_close_matches(category, self._members, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(self._members)[:12]}"
            raise DataError(f"category {category!r:.80}: no item has it; {hint}")
        return self._members[category]

    def any_of(self, categories: Collection[str]) -> NDArray[np.bool_]:
        """[I] whether an item has one of these categories."""
        mask = np.zeros(len(self.items), bool)
        for name in categories:
            mask[self.members(name)] = True
        return mask

    def membership(self, places: NDArray[np.int64], categories: Sequence[str]) -> NDArray[np.bool_]:
        """[n, C] which of these items are in which of these categories."""
        return np.array(
            [[name in self.items.categories[place] for name in categories] for place in places.tolist()],
            dtype=bool,
        ).reshape(len(places), len(categories))

    def newness(self, now: float, half_life_days: float) -> NDArray[np.float32]:
        """[I] 2^(-age / half-life), in [0, 1]; 0 for items of unknown age."""
        added = self.items.added
        age = np.maximum(now - added, 0.0) / DAY
        return np.where(added > 0, np.exp2(-age / half_life_days), 0.0).astype(np.float32)
