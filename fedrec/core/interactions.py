"""Interactions, catalogue and user batches: the three shapes in which data moves through fedrec.

Letters: U users, I items, N interactions, L the longest history of a batch, R width of a review.
Out of scope: reading files (`fedrec.data.loaders`), cleaning, splitting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
#: Of `Interactions`, one entry per interaction; `review` may be missing.
COLUMNS = ("user", "item", "value", "timestamp", "review")


@dataclass(frozen=True)
class Interactions:
    """Who did what, columnar, sorted by user and within a user from oldest to newest.

    Attributes:
        user: [N] int64, index into `user_ids`.
        item: [N] int64, index into `item_ids`.
        value: [N] float32, rating or strength; 1 where the source has none.
        timestamp: [N] int64, seconds since 1970, or the position in the file where the source has no time.
        user_ids: [U] str, the data set's own user ids.
        item_ids: [I] str, the data set's own item ids.
        review: [N, R] float32, vectors of what users wrote, zeros where they wrote nothing; None: not known. The
            text itself is not kept. Like a rating it belongs to the user and never leaves the node.

    Example:
        >>> import fedrec
        >>> visits = fedrec.Interactions.from_columns(["bob", "ann", "ann"], ["tea", "milk", "tea"])
        >>> visits.user_ids.tolist(), visits.item_ids.tolist(), visits.history(0).tolist()
        (['ann', 'bob'], ['milk', 'tea'], [0, 1])
    """

    user: IntArray
    item: IntArray
    value: FloatArray
    timestamp: IntArray
    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]
    review: FloatArray | None = None
    indptr: IntArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lengths = [len(column) for column in self.columns().values()]
        if len(set(lengths)) != 1:
            raise DataError(f"columns of different lengths {lengths}: give equally long ones")
        if len(self.user):
            if self.user.min() < 0 or self.user.max() >= len(self.user_ids):
                raise DataError("a user index lies outside user_ids: build with Interactions.from_columns")
            if self.item.min() < 0 or self.item.max() >= len(self.item_ids):
                raise DataError("an item index lies outside item_ids: build with Interactions.from_columns")
            if np.any(np.diff(self.user) < 0):
                raise DataError("interactions are not sorted by user: build with Interactions.from_columns")
        indptr = np.zeros(len(self.user_ids) + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.user, minlength=len(self.user_ids)), out=indptr[1:])
        object.__setattr__(self, "indptr", indptr)

    @classmethod
    def from_columns(
        cls,
        user: Sequence[object] | NDArray[np.generic],
        item: Sequence[object] | NDArray[np.generic],
        value: Sequence[float] | NDArray[np.generic] | None = None,
        timestamp: Sequence[int] | NDArray[np.generic] | None = None,
        item_ids: NDArray[np.str_] | None = None,
        user_ids: NDArray[np.str_] | None = None,
    ) -> Interactions:
        """Build from raw columns in the data set's own ids.

        Without `timestamp` the order of the rows is taken as the order in time. Equal time stamps keep the
        order of the rows. Ids given in `user_ids` / `item_ids` fix the numbering (and may name users or items
        without any interaction); otherwise ids are numbered in sorted order, numbers by value.

        Raises:
            DataError: an id is not among the given `user_ids` or `item_ids`.
        """
        users, user_index = _index_ids(np.asarray(user), user_ids, "user")
        items, item_index = _index_ids(np.asarray(item), item_ids, "item")
        n = len(user_index)
        stamps = np.arange(n, dtype=np.int64) if timestamp is None else np.asarray(timestamp, dtype=np.int64)
        values = np.ones(n, np.float32) if value is None else np.asarray(value, dtype=np.float32)
        order = np.lexsort((np.arange(n), stamps, user_index))
        return cls(user_index[order], item_index[order], values[order], stamps[order], users, items)

    def __len__(self) -> int:
        return len(self.user)

    def columns(self, rows: slice | NDArray[np.generic] = slice(None)) -> dict[str, Any]:
        """The columns that are known, by name, at the given rows (an index or a mask)."""
        known = {name: getattr(self, name) for name in COLUMNS}
        return {name: column[rows] for name, column in known.items() if column is not None}

    @property
    def n_users(self) -> int:
        """Number of users U, those without interactions included."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items I, those without interactions included."""
        return len(self.item_ids)

    @property
    def counts(self) -> IntArray:
        """[U] number of interactions of each user."""
        return np.diff(self.indptr)

    @property
    def item_counts(self) -> IntArray:
        """[I] number of interactions of each item."""
        return np.bincount(self.item, minlength=self.n_items).astype(np.int64)

    def history(self, user: int) -> IntArray:
        """Items of one user, oldest first."""
        return self.item[self.indptr[user] : self.indptr[user + 1]]

    def select(self, mask: NDArray[np.bool_]) -> Interactions:
        """The interactions where `mask` [N] holds; the id maps stay as they are."""
        return replace(self, **self.columns(mask))

    def compact(self) -> Interactions:
        """Renumber so that only users and items with interactions remain."""
        users, user = np.unique(self.user, return_inverse=True)
        items, item = np.unique(self.item, return_inverse=True)
        return replace(
            self,
            user=user.astype(np.int64),
            item=item.astype(np.int64),
            user_ids=self.user_ids[users],
            item_ids=self.item_ids[items],
        )

    def merge(self, other: Interactions) -> Interactions:
        """Both together, `other` after `self` within each user; both must share their id maps."""
        if not (
            np.array_equal(self.user_ids, other.user_ids) and np.array_equal(self.item_ids, other.item_ids)
        ):
            raise DataError("merge needs two parts of one data set (the same user and item ids in both)")
        order = np.argsort(np.concatenate([self.user, other.user]), kind="stable")
        mine, theirs = self.columns(), other.columns()
        if mine.keys() != theirs.keys():
            raise DataError("merge needs two parts of one data set (reviews in both or in neither)")
        return replace(self, **{name: np.concatenate([mine[name], theirs[name]])[order] for name in mine})

    def batch(self, users: IntArray) -> UserBatch:
        """The histories of the given users as one ragged batch (user keys are the indices here)."""
        everyone = np.arange(self.n_users, dtype=np.int64)
        columns = (self.item, self.value, self.timestamp, self.review)
        return UserBatch(everyone, self.indptr, *columns).take(users)


def _index_ids(
    raw: NDArray[np.generic], given: NDArray[np.str_] | None, what: str
) -> tuple[NDArray[np.str_], IntArray]:
    """Sorted ids as text and the index of each raw value among them."""
    if given is None:
        unique, index = np.unique(raw, return_inverse=True)
        return unique.astype(np.str_), index.astype(np.int64)
    text = raw.astype(np.str_)
    order = np.argsort(given)
    position = np.minimum(np.searchsorted(given, text, sorter=order), max(len(given) - 1, 0))
    index = order[position] if len(given) else np.zeros(len(text), dtype=np.int64)
    unknown = (given[index] != text) if len(given) else np.ones(len(text), dtype=bool)
    if np.any(unknown):
        raise DataError(
            f"unknown {what} id {str(text[unknown][0])!r} ({int(unknown.sum())} rows): "
            f"expected one of the {len(given)} known {what}s; drop these rows or add the {what}s"
        )
    return given, index.astype(np.int64)


@dataclass(frozen=True)
class UserBatch:
    """Histories of U users, ragged: user u owns entries `indptr[u]:indptr[u+1]`, oldest first.

    Attributes:
        user: [U] int64 user keys; randomness is derived from them, so they are the same on every engine.
        indptr: [U+1] int64.
        item: [N] int64 item indices.
        value: [N] float32.
        time: [N] int64 seconds since 1970, or positions in a file; None: not known.
        review: [N, R] float32, vectors of what was written; None: not known.
    """

    user: IntArray
    indptr: IntArray
    item: IntArray
    value: FloatArray
    time: IntArray | None = None
    review: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def counts(self) -> IntArray:
        """[U] history lengths."""
        return np.diff(self.indptr)

    def emptied(self) -> UserBatch:
        """The same users without any history."""
        review = None if self.review is None else self.review[:0]
        time = None if self.time is None else self.time[:0]
        return UserBatch(self.user, np.zeros_like(self.indptr), self.item[:0], self.value[:0], time, review)

    @property
    def row(self) -> IntArray:
        """[N] position in the batch of the user who owns each entry."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts)

    @property
    def age(self) -> IntArray:
        """[N] how many of the user's interactions are newer: 0 for the latest."""
        return np.repeat(self.indptr[1:], self.counts) - 1 - np.arange(len(self.item), dtype=np.int64)

    def take(self, rows: IntArray) -> UserBatch:
        """The users at the given positions, in that order."""
        counts = self.counts[rows]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=indptr[1:])
        take = np.repeat(self.indptr[:-1][rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        return self._with(self.user[rows], indptr, take)

    def keep(self, mask: NDArray[np.bool_]) -> UserBatch:
        """The same users with only the entries where `mask` [N] holds."""
        indptr = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.row[mask], minlength=len(self)), out=indptr[1:])
        return self._with(self.user, indptr, mask)

    def _with(self, user: IntArray, indptr: IntArray, rows: slice | NDArray[np.generic]) -> UserBatch:
        """Other users, who own the entries at `rows`."""
        time = None if self.time is None else self.time[rows]
        review = None if self.review is None else self.review[rows]
        return UserBatch(user, indptr, self.item[rows], self.value[rows], time, review)

    def chunks(self, max_entries: int, max_users: int) -> Iterator[tuple[slice, UserBatch]]:
        """Consecutive pieces of at most `max_users` users and about `max_entries` entries, with their slice."""
        start = 0
        while start < len(self):
            by_entries = int(np.searchsorted(self.indptr, self.indptr[start] + max_entries, side="right")) - 1
            stop = min(max(by_entries, start + 1), start + max_users, len(self))
            lo, hi = self.indptr[start], self.indptr[stop]
            piece = self._with(self.user[start:stop], self.indptr[start : stop + 1] - lo, slice(lo, hi))
            yield slice(start, stop), piece
            start = stop

    def padded(self, length: int, fill: int) -> IntArray:
        """[U, length] the latest `length` items of each user, left-aligned, `fill` behind the end."""
        out = np.full((len(self), length), fill, dtype=np.int64)
        keep = self.age < length
        position = np.arange(len(self.item)) - np.repeat(self.indptr[:-1], self.counts)
        shift = np.maximum(self.counts - length, 0)
        rows = self.row
        out[rows[keep], (position - shift[rows])[keep]] = self.item[keep]
        return out


@dataclass(frozen=True)
class Catalog:
    """What is publicly known of the items.

    Attributes:
        item_ids: [I] str, in the order of `Interactions.item_ids`.
        titles: [I] str, empty where unknown.
        categories: one tuple of category names per item.
        text: a free description per item, empty where unknown.
        features: [I, F] float32 or None.

    Example:
        >>> import fedrec, numpy as np
        >>> catalog = fedrec.Catalog.bare(np.array(["milk", "tea"]))
        >>> len(catalog), catalog.label(1)
        (2, 'tea')
    """

    item_ids: NDArray[np.str_]
    titles: NDArray[np.str_]
    categories: tuple[tuple[str, ...], ...]
    text: tuple[str, ...] | None = None
    features: FloatArray | None = None

    def __post_init__(self) -> None:
        columns = (self.item_ids, self.titles, self.categories, self.text, self.features)
        if len({len(column) for column in columns if column is not None}) != 1:
            raise DataError(
                "a catalogue needs one id, title, category tuple, text and row of features per item"
            )

    def __len__(self) -> int:
        return len(self.item_ids)

    @classmethod
    def bare(cls, item_ids: NDArray[np.str_]) -> Catalog:
        """A catalogue that knows ids only."""
        return cls(item_ids, np.full(len(item_ids), "", dtype=np.str_), ((),) * len(item_ids))

    def align(self, item_ids: NDArray[np.str_]) -> Catalog:
        """The same knowledge in the order of `item_ids`; unknown items become bare."""
        position = {item: k for k, item in enumerate(self.item_ids.tolist())}
        where = [position.get(i, -1) for i in item_ids.tolist()]
        pick = np.array(where, dtype=np.int64)
        known = pick >= 0
        titles = np.where(known, self.titles[pick], "") if len(self) else np.full(len(item_ids), "")
        text = None if self.text is None else tuple(self.text[k] if k >= 0 else "" for k in where)
        features = None if self.features is None else np.where(known[:, None], self.features[pick], 0)
        categories = tuple(self.categories[k] if k >= 0 else () for k in where)
        return Catalog(item_ids, titles.astype(np.str_), categories, text, features)

    def label(self, item: int) -> str:
        """Title of an item, or its id where it has none."""
        return str(self.titles[item]) or str(self.item_ids[item])


@dataclass(frozen=True)
class Dataset:
    """Interactions with their catalogue, and where they came from.

    Attributes:
        name: as reports call it.
        interactions: all of them.
        catalog: of its items.
        terms: of use.
        source: the name by which `load_dataset` loads it again; empty: data of the caller's own.

    Example:
        >>> import fedrec
        >>> data = fedrec.load_dataset("movietweetings")
        >>> data.name, data.interactions.n_users, data.catalog.titles[0].item()
        ('movietweetings', 16554, "Fantômas - À l'ombre de la guillotine (1913)")
    """

    name: str
    interactions: Interactions
    catalog: Catalog
    terms: str = ""
    source: str = ""
