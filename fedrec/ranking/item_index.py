"""What lists need of a model and its items, computed once per model: categories, popularity, recency.

Out of scope: anything about a user.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking.items import Items
from fedrec.ranking.model import Scorer

DAY = 86_400.0


Model = TypeVar("Model", bound=Scorer, covariant=True)


class ItemIndex(Generic[Model]):
    """A model with its items, ready to make lists; immutable, safe for several threads.

    Args:
        model: that scores.
        items: in the order of its tables.

    Attributes:
        trained: how many of the items the model was trained on; the others came later.

    Raises:
        DataError: model and items are of different numbers.
    """

    def __init__(self, model: Model, items: Items) -> None:
        if model.n_items != len(items):
            raise DataError(
                f"a model of {model.n_items} items with {len(items)} items: give those of its tables"
            )
        self.model, self.items = model, items
        cold = getattr(model, "kind", "") == "with_cold_items"
        self.trained: int = getattr(model, "inner", model).n_items if cold else model.n_items

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

    def membership(self, places: NDArray[np.int64], categories: Sequence[str]) -> NDArray[np.bool_]:
        """[n, C] which of these items are in which of these categories."""
        columns: dict[str, list[int]] = {}
        for column, name in enumerate(categories):
            columns.setdefault(name, []).append(column)
        found = np.zeros((len(places), len(categories)), bool)
        if columns:
            for row, place in enumerate(places.tolist()):
                for name in self.items.categories[place]:
                    for column in columns.get(name, ()):
                        found[row, column] = True
        return found

    @cached_property
    def _undated(self) -> NDArray[np.int64]:
        return np.flatnonzero(~(self.items.added > 0))

    def recency(self, now: float, half_life_days: float) -> NDArray[np.float32]:
        """[I] 2^(-age / half-life), in [0, 1]; 0 for items of unknown age, 1 for those of the future."""
        halvings = ((now - self.items.added) / (DAY * half_life_days)).astype(np.float32)
        new = np.exp(np.float32(-math.log(2.0)) * np.maximum(halvings, 0, out=halvings))
        new[self._undated] = 0.0
        return np.asarray(new, dtype=np.float32)
