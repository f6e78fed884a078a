"""Cleaning as explicit steps, each of which reports what it removed.

A step is a small frozen value with a name; `clean` applies a list of them in order. Rows that could not be read at
all were left out by the reader, whose report becomes the first line. Out of scope: what is held out (`splits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Dataset, Interactions
from fedrec.data.rows import RowReport


class Step(Protocol):
    """One cleaning step."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def apply(self, dataset: Dataset) -> Interactions:
        """The interactions that stay; users and items without any are dropped afterwards."""


@dataclass(frozen=True)
class DropDuplicates:
    """Of several interactions of a user with an item the latest stays (of equally late ones the last in the file)."""

    name: str = "duplicates (latest wins)"

    def apply(self, dataset: Dataset) -> Interactions:  # noqa: D102
        data = dataset.interactions
        pair = data.user * data.n_items + data.item
        _, last = np.unique(pair[::-1], return_index=True)
        keep = np.zeros(len(data), dtype=bool)
        keep[len(data) - 1 - last] = True
        return data.select(keep)


@dataclass(frozen=True)
class RatingRange:
    """Drop ratings outside `low..high`; both ends are allowed."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ConfigError(
                f"rating range {self.low}..{self.high}: the lower end must not exceed the upper"
            )

    @property
    def name(self) -> str:  # noqa: D102
        return f"rating outside {self.low:g}..{self.high:g}"

    def apply(self, dataset: Dataset) -> Interactions:  # noqa: D102
        value = dataset.interactions.value
        return dataset.interactions.select((value >= self.low) & (value <= self.high))


@dataclass(frozen=True)
class DropUnknownItems:
    """Drop interactions with items that are not in the catalogue.

    Attributes:
        known: ids of the catalogue; None: items of which the data set knows neither title nor category are unknown.
    """

    known: frozenset[str] | None = None
    name: str = "items not in the catalogue"

    def apply(self, dataset: Dataset) -> Interactions:  # noqa: D102
        data, catalog = dataset.interactions, dataset.catalog
        if self.known is None:
            described = [
                bool(t) or bool(c) for t, c in zip(catalog.titles.tolist(), catalog.categories, strict=True)
            ]
        else:
            described = [item in self.known for item in data.item_ids.tolist()]
        return data.select(np.array(described, dtype=bool)[data.item])


@dataclass(frozen=True)
class KCore:
    """Drop users and items with too few interactions, again and again until all that remain have enough."""

    users: int
    items: int

    def __post_init__(self) -> None:
        if min(self.users, self.items) < 1:
            raise ConfigError(
                f"k-core of {self.users} and {self.items}: expected whole numbers of at least 1"
            )

    @property
    def name(self) -> str:  # noqa: D102
        return f"k-core (users {self.users}, items {self.items})"

    def apply(self, dataset: Dataset) -> Interactions:  # noqa: D102
        data = dataset.interactions
        while True:
            keep = (data.counts >= self.users)[data.user] & (data.item_counts >= self.items)[data.item]
            if keep.all():
                return data
            data = data.select(keep)


@dataclass(frozen=True)
class Binarise:
    """Ratings from `threshold` on count 1, lower ones are dropped; None: every interaction counts 1."""

    threshold: float | None = None

    @property
    def name(self) -> str:  # noqa: D102
        return (
            "every rating counts 1"
            if self.threshold is None
            else f"rating below {self.threshold:g}, rest counts 1"
        )

    def apply(self, dataset: Dataset) -> Interactions:  # noqa: D102
        data = dataset.interactions
        kept = data if self.threshold is None else data.select(data.value >= self.threshold)
        return replace(kept, value=np.ones(len(kept), dtype=np.float32))


@dataclass(frozen=True)
class CleaningRow:
    """What one step did."""

    step: str
    users_before: int
    users_after: int
    items_before: int
    items_after: int
    interactions_before: int
    interactions_after: int

    @property
    def removed(self) -> int:
        """Interactions removed."""
        return self.interactions_before - self.interactions_after


@dataclass(frozen=True)
class CleaningReport:
    """What all steps did, in order; `read` is the reader's report, if there is one."""

    rows: tuple[CleaningRow, ...]
    read: RowReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        steps = [asdict(row) | {"removed": row.removed} for row in self.rows]
        return {"read": None if self.read is None else self.read.as_dict(), "steps": steps}

    def __str__(self) -> str:
        lines = [] if self.read is None else [f"reading: {self.read}"]
        lines += [
            f"{row.step}: removed {row.removed} interactions ({row.interactions_before} -> {row.interactions_after}; "
            f"users {row.users_before} -> {row.users_after}, items {row.items_before} -> {row.items_after})"
            for row in self.rows
        ]
        return "\n".join(lines) or "no cleaning"


def clean(
    dataset: Dataset, steps: Sequence[Step], read: RowReport | None = None
) -> tuple[Dataset, CleaningReport]:
    """Apply the steps in order.

    Args:
        dataset: stays as it is.
        steps: for example `[DropDuplicates(), KCore(users=5, items=5)]`.
        read: the reader's report, to become part of this one.

    Returns:
        The data set that remains, renumbered without empty users and items, its catalogue aligned; the report.

    Raises:
        DataError: a step removes everything.
    """
    rows: list[CleaningRow] = []
    for step in steps:
        before = dataset.interactions
        after = step.apply(dataset).compact()
        if not len(after):
            raise DataError(
                f"cleaning step {step.name!r} removes all {len(before)} interactions: relax or drop it"
            )
        catalog = dataset.catalog
        if after.n_items != before.n_items:
            catalog = catalog.align(after.item_ids)
        dataset = replace(dataset, interactions=after, catalog=catalog)
        sizes = (before.n_users, after.n_users, before.n_items, after.n_items, len(before), len(after))
        rows.append(CleaningRow(step.name, *sizes))
    return dataset, CleaningReport(tuple(rows), read)
