"""What all loaders share: reading one member of a folder or zip, and making a catalogue.

A loader turns original files into raw parts; aligning them and refusing damaged files happens once, in `registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import Catalog, Interactions
from fedrec.core.registry import Registry
from fedrec.data.download import Remote
from fedrec.data.files import Source
from fedrec.data.rows import Column, Reader, RowReport
from fedrec.data.tabular import Columns, format_of, read_stream


class Item(NamedTuple):
    """What a file says of one item."""

    id: str
    title: str
    categories: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Loaded:
    """What a loader found; `variant` names a different form of the data set, where it found one."""

    interactions: Interactions
    catalog: Catalog
    report: RowReport
    variant: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """A data set that fedrec knows.

    Attributes:
        name: how it is asked for.
        title: for users.
        terms: what its publisher allows.
        load: from its original files; the text is the category of a data set that comes in categories.
        remotes: where it is downloaded from (`{category}` in an address stands for the category); none: by hand.
        by_hand: how to get it otherwise.
        load_reviews: as `load`, with vectors of what users wrote; None: they wrote nothing.
        bundled: what comes with the package itself, for a data set that is asked for without a path; None: nothing.
    """

    name: str
    title: str
    terms: str
    load: Callable[[Source, str], Loaded]
    remotes: tuple[Remote, ...] = ()
    by_hand: str = ""
    load_reviews: Callable[[Source, str, Reader], Loaded] | None = None
    bundled: Callable[[], Loaded] | None = None

    @property
    def has_categories(self) -> bool:
        """It is asked for as `name:Category`."""
        return any("{category}" in remote.url for remote in self.remotes)


def _check(name: str, made: object) -> None:
    if not isinstance(made, DatasetInfo):
        raise ConfigError(f"data.name {name!r} is {made!r}: expected a DatasetInfo")


#: Data sets by name; each module of this package registers its own.
LOADERS: Registry[DatasetInfo] = Registry("loaders", "data.name", (str(__package__),), check=_check)


def read_member(
    source: Source, member: str, columns: Columns, *, separator: str | None = None, quoted: bool = True
) -> tuple[dict[str, Column], RowReport]:
    """The columns of one member."""
    kind = format_of(member)
    if kind == "parquet":
        return read_stream(source.buffer(member), source.label(member), columns.fields(), kind)
    with source.open(member) as stream:
        return read_stream(
            stream, source.label(member), columns.fields(), kind, separator=separator, quoted=quoted
        )


def catalog_of(items: Iterable[Item]) -> Catalog:
    """A catalogue of items; the first of several entries of one id counts."""
    known: dict[str, Item] = {}
    for item in items:
        known.setdefault(item.id, item)
    text = tuple(item.text for item in known.values())
    return Catalog(
        np.array(list(known), dtype=np.str_),
        np.array([item.title for item in known.values()], dtype=np.str_),
        tuple(item.categories for item in known.values()),
        text if any(text) else None,
    )


def piped(text: str) -> tuple[str, ...]:
    """Categories of a field `a|b|c`."""
    return tuple(
        part for part in (p.strip() for p in text.split("|")) if part and part != "(no genres listed)"
    )
