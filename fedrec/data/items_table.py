"""A table of items: what is publicly known of each, in any format that interactions are read from.

Out of scope: known data sets (`fedrec.data.loaders`), vectors made of texts (`fedrec.content`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedrec.core.errors import DataError
from fedrec.core.interactions import Catalog
from fedrec.data.rows import Coded, Column, Field
from fedrec.data.tabular import column_names, read_table

#: Columns beside the item's id; each may be missing.
KNOWN = ("title", "categories", "text")
CATEGORY_SEPARATOR = "|"


def read_catalog(path: Path) -> Catalog:
    """The catalogue of a table with the column `item` and some of `title`, `categories` ("a|b") and `text`.

    Raises:
        DataError: the file is missing, damaged or empty, has no such columns, leaves an id out or names one twice.
        EnvironmentProblem: it is Parquet and pyarrow is not installed.
    """
    known = [name for name in KNOWN if name in column_names(path)]
    fields = [Field("item", "item", "id"), *(Field(name, name, "text") for name in known)]
    table, report = read_table(path, fields)
    if report.bad or not known:
        what = str(report) if report.bad else f"{path} has none of the columns {', '.join(KNOWN)}"
        raise DataError(f"{what}: expected one row per item with its id and what is known of it")
    columns = {name: _texts(table[name]) for name in ("item", *known)}
    ids = np.array(columns["item"], dtype=np.str_)
    if len(np.unique(ids)) != len(ids):
        names, counts = np.unique(ids, return_counts=True)
        raise DataError(f"{path} names item {str(names[counts > 1][0])!r} more than once: give each one row")
    nothing = [""] * len(ids)
    return Catalog(
        ids,
        np.array(columns.get("title", nothing), dtype=np.str_),
        tuple(_categories(text) for text in columns.get("categories", nothing)),
        tuple(columns["text"]) if "text" in columns else None,
    )


def _texts(column: Column) -> list[str]:
    assert isinstance(column, Coded)
    return [column.ids[k] for k in column.index.tolist()]


def _categories(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(CATEGORY_SEPARATOR) if part.strip())
