"""Items that no one has touched in training, served from their titles and categories.

Every item is a sparse vector of hashed features (words of the title, whole categories) weighted by tf-idf (Salton and
Buckley 1988, "Term-weighting approaches in automatic text retrieval"). A new item is scored as the mean of the
trained items most like it, weighted by their cosine: that works for every model, and explanations still add up.
What a user did with a new item itself says nothing until a model knows it. Out of scope: text encoders.

Letters: I trained items, C new items, k neighbours.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking.items import Arrays, Items
from fedrec.ranking.model import Explanation, Header, History, Scores, ServingModel, User, read_registered
from fedrec.ranking.popular import INNER

BUCKETS = 1 << 18
CATEGORY_WEIGHT = 2.0
NEIGHBOURS = 20
_WORD = re.compile(r"\w+")
_YEAR = re.compile(r"(19|20)\d\d")


def features(title: str, categories: Iterable[str]) -> dict[int, float]:
    """Hashed features with their counts: words of the title, the decade it may name, each category."""
    counts: dict[int, float] = {}
    words = _WORD.findall(title.casefold())
    marks = [(f"word {word}", 1.0) for word in words if not _YEAR.fullmatch(word)]
    marks += [(f"decade {word[:3]}", 1.0) for word in words if _YEAR.fullmatch(word)]
    marks += [(f"category {name.casefold()}", CATEGORY_WEIGHT) for name in categories]
    for mark, weight in marks:
        bucket = zlib.crc32(mark.encode()) % BUCKETS
        counts[bucket] = counts.get(bucket, 0.0) + weight
    return counts


class ContentSpace:
    """The trained items by what is written about them.

    Args:
        titles: [I] of the trained items.
        categories: [I] of the trained items.
    """

    def __init__(self, titles: Sequence[str], categories: Sequence[Iterable[str]]) -> None:
        found = [features(title, names) for title, names in zip(titles, categories, strict=True)]
        self._n_items = len(found)
        bucket = np.array([b for each in found for b in each], dtype=np.int64)
        weight = np.array([w for each in found for w in each.values()], dtype=np.float64)
        owner = np.repeat(np.arange(self._n_items), [len(each) for each in found])
        held = np.bincount(bucket, minlength=BUCKETS)
        self._idf = np.log1p(self._n_items / np.maximum(held, 1))
        weight *= self._idf[bucket]
        norms = np.sqrt(np.bincount(owner, np.square(weight), minlength=self._n_items))
        weight /= np.maximum(norms[owner], 1e-12)
        order = np.argsort(bucket, kind="stable")
        self._owner, self._weight = owner[order], weight[order]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(held)])

    def nearest(
        self, title: str, categories: Iterable[str], k: int = NEIGHBOURS
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """At most k trained items [n] that share something with an item, best first, and their cosines [n]."""
        asked = {b: w * float(self._idf[b]) for b, w in features(title, categories).items()}
        norm = sum(w * w for w in asked.values()) ** 0.5
        cosine = np.zeros(self._n_items)
        for bucket, weight in asked.items():
            part = slice(self._starts[bucket], self._starts[bucket + 1])
            cosine[self._owner[part]] += weight / max(norm, 1e-12) * self._weight[part]
        best = np.argsort(-cosine, kind="stable")[:k]
        best = best[cosine[best] > 0]
        return best.astype(np.int64), cosine[best]


@dataclass(frozen=True)
class Neighbours:
    """The trained items that stand for each new one.

    Attributes:
        item: [C, k] places of trained items; any place where the weight is 0.
        weight: [C, k] not below 0; rows sum to 1, or to 0 for an item that is like nothing.
    """

    item: NDArray[np.int64]
    weight: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        space: ContentSpace,
        titles: Sequence[str],
        categories: Sequence[Iterable[str]],
        k: int = NEIGHBOURS,
    ) -> Neighbours:
        """Neighbours of new items by content; each counts by the square of its cosine."""
        item, weight = np.zeros((len(titles), k), np.int64), np.zeros((len(titles), k), np.float32)
        for c, (title, names) in enumerate(zip(titles, categories, strict=True)):
            found, cosine = space.nearest(title, names, k)
            if len(found):
                item[c, : len(found)] = found
                weight[c, : len(found)] = np.square(cosine) / np.square(cosine).sum()
        return cls(item, weight)


class WithColdItems(ServingModel):
    """A model whose items are followed by new ones.

    Args:
        inner: of the trained items.
        neighbours: of the C new ones.
    """

    kind: ClassVar[str] = "with_cold_items"

    def __init__(self, inner: ServingModel, neighbours: Neighbours) -> None:
        item, weight = neighbours.item, neighbours.weight
        if item.shape != weight.shape or item.ndim != 2 or np.any(weight < 0):
            raise ValueError(
                f"neighbours {item.shape} with weights {weight.shape}: expected one weight, not below 0, each"
            )
        if item.size and not 0 <= item.min() <= item.max() < inner.n_items:
            raise ValueError(f"a neighbour lies outside the {inner.n_items} trained items")
        self.inner = inner
        self.neighbours = neighbours
        self._alone = ~(weight.sum(axis=1) > 0)

    @property
    def n_items(self) -> int:
        """See `ServingModel`: trained and new."""
        return self.inner.n_items + len(self.neighbours.item)

    def fold_in(self, history: History) -> User:
        """See `ServingModel`; entries of new items are kept and say nothing."""
        if len(history) and history.item.max() >= self.n_items:
            raise DataError(f"a history with item {history.item.max()}: the model has {self.n_items}")
        known = history.item < self.inner.n_items
        return User(history, self.inner.fold_in(History(history.item[known], history.weight[known])))

    def scores(self, user: User) -> Scores:
        """See `ServingModel`; a new item that is like nothing comes last."""
        trained = self.inner.scores(user.state)
        new = np.einsum("ck,ck->c", trained[self.neighbours.item], self.neighbours.weight)
        new[self._alone] = trained.min(initial=0.0)
        return np.concatenate([trained, new.astype(np.float32)])

    def explain(self, user: User, item: int) -> Explanation:
        """See `ServingModel`: the mean of the neighbours' explanations."""
        known = user.history.item < self.inner.n_items
        contributions = np.zeros(len(user.history))
        row = item - self.inner.n_items
        if row >= 0 and self._alone[row]:
            score = float(self.scores(user)[item])
            return Explanation(score, score, contributions)
        if row < 0:
            found = self.inner.explain(user.state, item)
            contributions[known] = found.contributions
            return Explanation(found.score, found.base, contributions)
        base = 0.0
        for place, weight in zip(
            self.neighbours.item[row], self.neighbours.weight[row].astype(float), strict=True
        ):
            if weight:
                found = self.inner.explain(user.state, int(place))
                base += weight * found.base
                contributions[known] += weight * found.contributions
        return Explanation(base + float(contributions.sum()), base, contributions)

    def similar(self, item: int) -> Scores:
        """[I + C] likeness to a trained item, or to the neighbours of a new one."""
        if item < self.inner.n_items:
            trained = self.inner.similar(item)
        else:
            row = item - self.inner.n_items
            trained = np.zeros(self.inner.n_items, np.float32)
            for place, weight in zip(self.neighbours.item[row], self.neighbours.weight[row], strict=True):
                if weight:
                    trained = trained + weight * self.inner.similar(int(place))
        usable = np.where(np.isfinite(trained), trained, 0.0).astype(np.float32)
        new = np.einsum("ck,ck->c", usable[self.neighbours.item], self.neighbours.weight)
        return np.concatenate([trained, new.astype(np.float32)])

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `ServingModel`; a new item has the mean of its neighbours' vectors."""
        trained = items < self.inner.n_items
        rows = items[~trained] - self.inner.n_items
        stand_in = self.neighbours.item[rows]
        distinct, place = np.unique(np.concatenate([items[trained], stand_in.ravel()]), return_inverse=True)
        table = self.inner.vectors(distinct)
        out = np.empty((len(items), table.shape[1]), np.float32)
        out[trained] = table[place[: trained.sum()]]
        near = table[place[trained.sum() :]].reshape(*stand_in.shape, table.shape[1])
        out[~trained] = np.einsum("nkd,nk->nd", near, self.neighbours.weight[rows])
        return out

    def quantised(self) -> WithColdItems:
        """See `ServingModel`."""
        return WithColdItems(self.inner.quantised(), self.neighbours)

    def to_arrays(self) -> tuple[Arrays, Header]:
        """See `ServingModel`."""
        arrays, header = self.inner.to_arrays()
        named: Arrays = {INNER + name: values for name, values in arrays.items()}
        own: Arrays = {
            "cold.item": self.neighbours.item.astype(np.int32),
            "cold.weight": self.neighbours.weight,
        }
        return named | own, {"kind": self.kind, "inner": header}

    @classmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> WithColdItems:
        """See `ServingModel`."""
        named = {n.removeprefix(INNER): values for n, values in arrays.items() if n.startswith(INNER)}
        item = np.asarray(arrays["cold.item"], dtype=np.int64)
        weight = np.asarray(arrays["cold.weight"], dtype=np.float32)
        return cls(read_registered(named, header["inner"]), Neighbours(item, weight))


def add_items(
    model: ServingModel,
    items: Items,
    ids: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[Sequence[str]],
    added: NDArray[np.floating] | None = None,
) -> tuple[WithColdItems, Items]:
    """A model and its items with new ones at the end.

    Raises:
        DataError: a new id is there already, or the model has new items already: add all of them at once.
    """
    if isinstance(model, WithColdItems):
        raise DataError("the model has new items already: add all of them at once to the trained model")
    known = [i for i in ids if items.index(i) is not None]
    if known:
        raise DataError(f"item {known[0]!r} is in the model already: give new items only")
    neighbours = Neighbours.of(ContentSpace(items.titles, items.categories), titles, categories)
    everything = Items.of(
        (*items.ids, *ids),
        (*items.titles, *titles),
        (*items.categories, *categories),
        np.concatenate([items.popularity, np.zeros(len(ids), np.float32)]),
        np.concatenate([items.added, np.zeros(len(ids)) if added is None else np.asarray(added)]),
    )
    return WithColdItems(model, neighbours), everything
