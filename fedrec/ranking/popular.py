"""Popularity that serves, and models that know the popular part of a catalogue only.

Out of scope: counting (`fedrec.recommenders.closed_form.popularity`).

Letters: I items, k of them known to an inner model.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Explanation, Header, History, Scores, ServingModel, User, read_registered

INNER = "inner."


class Popular(ServingModel):
    """The same scores for everyone.

    Args:
        popularity: [I].
    """

    kind: ClassVar[str] = "popularity"

    def __init__(self, popularity: NDArray[np.floating]) -> None:
        if popularity.ndim != 1:
            raise ValueError(f"popularity of shape {popularity.shape}: expected one axis")
        self.popularity = np.asarray(popularity, dtype=np.float32)

    @property
    def n_items(self) -> int:
        """See `ServingModel`."""
        return len(self.popularity)

    def fold_in(self, history: History) -> User:
        """See `ServingModel`."""
        return User(history)

    def scores(self, user: User) -> Scores:
        """See `ServingModel`."""
        return self.popularity.copy()

    def explain(self, user: User, item: int) -> Explanation:
        """See `ServingModel`."""
        score = float(self.popularity[item])
        return Explanation(score, score, np.zeros(len(user.history)))

    def similar(self, item: int) -> Scores:
        """[I] popularity: nothing is known of what is alike."""
        return self.popularity.copy()

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, n] no two items are alike."""
        return np.eye(len(items), dtype=np.float32)

    def quantised(self) -> Popular:
        """See `ServingModel`; one number per item stays as it is."""
        return self

    def to_arrays(self) -> tuple[Arrays, Header]:
        """See `ServingModel`."""
        return {"popularity": self.popularity}, {"kind": self.kind}

    @classmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> Popular:
        """See `ServingModel`."""
        return cls(np.asarray(arrays["popularity"], dtype=np.float32))


class Selected(ServingModel):
    """A model of k selected items; the others follow below all of them, by popularity.

    So do private models serve, which learn from the items that a noisy count found popular. Who has none of the
    selected items is shown what is popular.

    Args:
        inner: of k items.
        selected: [k] their places among all items, most popular first.
        popularity: [I].
    """

    kind: ClassVar[str] = "selected"

    def __init__(
        self, inner: ServingModel, selected: NDArray[np.int64], popularity: NDArray[np.floating]
    ) -> None:
        n = len(popularity)
        if len(selected) != inner.n_items or len(np.unique(selected)) != len(selected):
            raise ValueError(f"{len(selected)} selected items for a model of {inner.n_items}")
        if len(selected) and not 0 <= selected.min() <= selected.max() < n:
            raise ValueError(f"a selected item lies outside the {n} items")
        self.inner = inner
        self.selected = np.asarray(selected, dtype=np.int64)
        self.popularity = np.asarray(popularity, dtype=np.float32)
        self._place = np.full(n, -1, dtype=np.int64)
        self._place[self.selected] = np.arange(len(selected))
        rank = np.empty(n)
        rank[np.argsort(-self.popularity, kind="stable")] = np.arange(n)
        self._depth = (1.0 + rank / max(n, 1)).astype(np.float64)

    @property
    def n_items(self) -> int:
        """See `ServingModel`."""
        return len(self.popularity)

    def fold_in(self, history: History) -> User:
        """See `ServingModel`."""
        place = self._place[history.item]
        known = place >= 0
        return User(history, self.inner.fold_in(History(place[known], history.weight[known])))

    def scores(self, user: User) -> Scores:
        """See `ServingModel`."""
        inner = self._inner_scores(user.state)
        floor = min(float(inner.min(initial=0.0)), 0.0)
        span = 1.0 + max(float(inner.max(initial=0.0)), 0.0) - floor
        out = (floor - span * self._depth).astype(np.float32)
        out[self.selected] = inner
        return out

    def explain(self, user: User, item: int) -> Explanation:
        """See `ServingModel`; an item that is not selected owes its score to popularity alone."""
        place, inner = int(self._place[item]), user.state
        contributions = np.zeros(len(user.history))
        if place < 0 or not len(inner.history):
            score = float(self.scores(user)[item])
            return Explanation(score, score, contributions)
        found = self.inner.explain(inner, place)
        contributions[self._place[user.history.item] >= 0] = found.contributions
        return Explanation(found.score, found.base, contributions)

    def similar(self, item: int) -> Scores:
        """[I] of the inner model; items that are not selected are like nothing."""
        place = int(self._place[item])
        out = np.full(self.n_items, -np.inf, dtype=np.float32)
        if place >= 0:
            out[self.selected] = self.inner.similar(place)
        return out

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `ServingModel`; zero for items that are not selected."""
        place = self._place[items]
        known = self.inner.vectors(place[place >= 0])
        out = np.zeros((len(items), known.shape[1] if known.ndim == 2 else 0), dtype=np.float32)
        out[place >= 0] = known
        return out

    def quantised(self) -> Selected:
        """See `ServingModel`."""
        return Selected(self.inner.quantised(), self.selected, self.popularity)

    def to_arrays(self) -> tuple[Arrays, Header]:
        """See `ServingModel`."""
        arrays, header = self.inner.to_arrays()
        named = {INNER + name: values for name, values in arrays.items()}
        own: Arrays = {"selected": self.selected, "popularity": self.popularity}
        return named | own, {"kind": self.kind, "inner": header}

    @classmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> Selected:
        """See `ServingModel`."""
        named = {n.removeprefix(INNER): values for n, values in arrays.items() if n.startswith(INNER)}
        return cls(
            read_registered(named, header["inner"]),
            np.asarray(arrays["selected"], dtype=np.int64),
            np.asarray(arrays["popularity"], dtype=np.float32),
        )

    def _inner_scores(self, inner: User) -> Scores:
        if not len(inner.history):
            return np.arange(len(self.selected), 0, -1, dtype=np.float32)
        return self.inner.scores(inner)
