"""What a served model knows of its items, in the order of its tables: ids, titles, categories, popularity, age.

Everything in here is public. Strings lie as UTF-8 bytes with offsets, because safetensors holds numbers only.
Out of scope: scores (`serving`), and how a catalogue is read from a data set (`fedrec.data`).

Letters: I items.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError

Arrays = dict[str, NDArray[np.generic]]
MAX_ITEMS = 20_000_000


@dataclass(frozen=True)
class Items:
    """Public knowledge of I items.

    Attributes:
        ids: the app's own ids, all different.
        titles: empty where unknown.
        categories: names; empty where unknown.
        popularity: [I] higher is more popular, on any scale; zeros where nothing is known.
        added: [I] when the item came, in seconds since 1970; 0 where unknown.

    Raises:
        DataError: lengths differ, or an id stands twice.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    popularity: NDArray[np.float32] = field(repr=False)
    added: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name)) for name in ("ids", "titles", "categories", "popularity", "added")
        }
        if len(set(lengths.values())) != 1:
            raise DataError(f"items of different lengths {lengths}: give one of each per item")
        if len(self._places) != len(self.ids):
            raise DataError("an item id stands twice: give each item once")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        titles: Sequence[str] | None = None,
        categories: Sequence[Iterable[str]] | None = None,
        popularity: NDArray[np.floating] | None = None,
        added: NDArray[np.floating] | None = None,
    ) -> Items:
        """Items of which some things may be unknown."""
        n = len(ids)
        return cls(
            tuple(map(str, ids)),
            ("",) * n if titles is None else tuple(map(str, titles)),
            ((),) * n if categories is None else tuple(tuple(map(str, names)) for names in categories),
            np.zeros(n, np.float32) if popularity is None else np.asarray(popularity, dtype=np.float32),
            np.zeros(n) if added is None else np.asarray(added, dtype=np.float64),
        )

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.ids)}

    def index(self, item_id: str) -> int | None:
        """Where an item stands; None for one that is not here."""
        return self._places.get(item_id)

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        """All categories, sorted."""
        return tuple(sorted({name for names in self.categories for name in names}))

    def to_arrays(self) -> Arrays:
        """As numbers, for a file."""
        counts = np.array([len(names) for names in self.categories], dtype=np.int64)
        place = {name: k for k, name in enumerate(self.category_names)}
        arrays: Arrays = {
            "popularity": self.popularity,
            "added": self.added,
            "categories.indptr": _starts(counts),
            "categories.index": np.array(
                [place[name] for names in self.categories for name in names], dtype=np.int32
            ),
        }
        for name, texts in (
            ("ids", self.ids),
            ("titles", self.titles),
            ("category_names", self.category_names),
        ):
            arrays |= {f"{name}.{part}": values for part, values in _pack(texts).items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Items:
        """The items of `to_arrays`.

        Raises:
            DataError: the arrays are not those of items.
        """
        try:
            names = _unpack(arrays, "category_names")
            index = np.asarray(arrays["categories.index"], dtype=np.int64)
            if len(index) and not 0 <= index.min() <= index.max() < len(names):
                raise ValueError("a category is not there")
            picked = [names[k] for k in index.tolist()]
            return cls(
                _unpack(arrays, "ids"),
                _unpack(arrays, "titles"),
                tuple(tuple(picked[part]) for part in _slices(arrays["categories.indptr"], len(index))),
                np.asarray(arrays["popularity"], dtype=np.float32),
                np.asarray(arrays["added"], dtype=np.float64),
            )
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"no items ({error}): expected the arrays of Items.to_arrays") from error


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _pack(texts: Sequence[str]) -> Arrays:
    data = [text.encode() for text in texts]
    return {
        "bytes": np.frombuffer(b"".join(data), dtype=np.uint8),
        "starts": _starts(np.array([len(each) for each in data], dtype=np.int64)),
    }


def _unpack(arrays: Arrays, name: str) -> tuple[str, ...]:
    data = np.asarray(arrays[f"{name}.bytes"], dtype=np.uint8).tobytes()
    return tuple(data[part].decode() for part in _slices(arrays[f"{name}.starts"], len(data)))


def _slices(starts: NDArray[np.generic], size: int) -> Iterator[slice]:
    """One slice per element; slicing itself would forgive what a broken file may hold."""
    places = np.asarray(starts, dtype=np.int64)
    if (
        not 1 <= len(places) <= MAX_ITEMS
        or places[0] != 0
        or places[-1] != size
        or np.any(np.diff(places) < 0)
    ):
        raise ValueError("offsets do not fit")
    return itertools.starmap(slice, itertools.pairwise(places.tolist()))
