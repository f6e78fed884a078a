"""Splits that someone else made: one file per part, or one file with a column that says the part.

A split with rows left out would be another split, so a row that cannot be used is an error here.
Out of scope: making splits (`splits`), the format in which fedrec hands them on (`split_files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import IntArray, Interactions
from fedrec.data.rows import Coded, Column, Field, sorted_ids
from fedrec.data.split import Split
from fedrec.data.tabular import Columns, column_names, read_table

PARTS = ("train", "validation", "test", "support")
PART_FIELDS = (
    Field("user", "user", "id"),
    Field("item", "item", "id"),
    Field("rating", "rating", "number"),
    Field("timestamp", "timestamp", "seconds"),
)


def prepared(
    train_path: Path,
    validation_path: Path | None = None,
    test_path: Path | None = None,
    items_path: Path | None = None,
) -> Split:
    """A split that someone else made: files with the columns `user,item[,rating][,timestamp]`, CSV or Parquet.

    Where a file has no time stamps the order of its rows is the order in time. All parts and the items file (column
    `item`; for items no one interacted with) share one numbering.

    Raises:
        DataError: a file is missing or empty, lacks `user` or `item`, or has any row that cannot be used (a split
            with rows left out would be another split).
    """
    tables: dict[str, Mapping[str, Column]] = {}
    for name, path in (("train", train_path), ("validation", validation_path), ("test", test_path)):
        if path is not None:
            tables[name] = whole_table(Path(path), _part_fields(Path(path)))
    extra: list[str] = []
    if items_path is not None:
        items = whole_table(Path(items_path), [Field("item", "item", "id")])["item"]
        assert isinstance(items, Coded)
        extra = list(items.ids)
    return _number_together(tables, extra)


def from_split_column(path: Path, columns: Columns | None = None, split_column: str = "split") -> Split:
    """A split that a column of one file states (`train`, `val` or `validation`, `test`).

    Args:
        path: the file.
        columns: by default `user_id`, `item_id` and, as the time, `order`.
        split_column: name of the column.

    Raises:
        DataError: as `prepared`, or the column holds another word, or no row is a training row.
    """
    columns = columns or Columns("user_id", "item_id", timestamp="order")
    table = whole_table(Path(path), [*columns.fields(), Field("split", split_column, "id")])
    label = table["split"]
    assert isinstance(label, Coded)
    known = {
        "train": "train",
        "val": "validation",
        "valid": "validation",
        "validation": "validation",
        "test": "test",
    }
    unknown = [word for word in label.ids if word.lower() not in known]
    if unknown:
        raise DataError(f"{path}: column {split_column!r} says {unknown[0]!r}; expected train, val or test")
    named = np.array([known[word.lower()] for word in label.ids], dtype=np.str_)[label.index]
    chosen = {part: _rows(table, named == part) for part in PARTS if np.any(named == part)}
    if "train" not in chosen:
        raise DataError(f"{path}: column {split_column!r} marks no row as train: nothing to learn from")
    return _number_together(chosen, [])


def whole_table(path: Path, fields: list[Field]) -> dict[str, Column]:
    """A table none of whose rows may be left out."""
    table, report = read_table(path, fields)
    if report.bad:
        raise DataError(f"{report}: a split must be whole; mend or remove these rows")
    return table


def _part_fields(path: Path) -> list[Field]:
    """The fields of a part that its file has; user and item are asked for in any case."""
    names = column_names(path)
    return [f for f in PART_FIELDS if f.role in ("user", "item") or f.role in names]


def _rows(table: Mapping[str, Column], mask: NDArray[np.bool_]) -> dict[str, Column]:
    return {r: Coded(c.ids, c.index[mask]) if isinstance(c, Coded) else c[mask] for r, c in table.items()}


def _number_together(tables: Mapping[str, Mapping[str, Column]], extra_items: list[str]) -> Split:
    """Parts with one numbering of users and items; rows without time follow each other from part to part."""
    user_ids = _union([_used(t["user"]) for t in tables.values()])
    item_ids = _union([*(_used(t["item"]) for t in tables.values()), extra_items])
    parts: dict[str, Interactions] = {}
    start = 0
    for name, table in tables.items():
        n = len(coded(table["user"]).index)
        stamps = table.get("timestamp", np.arange(start, start + n, dtype=np.int64))
        assert not isinstance(stamps, Coded)
        parts[name] = numbered_part(table, stamps, user_ids, item_ids, sort_time=True)
        start += n
    return Split(parts["train"], parts.get("validation"), parts.get("test"), parts.get("support"))


def numbered_part(
    table: Mapping[str, Column],
    stamps: NDArray[Any],
    user_ids: NDArray[np.str_],
    item_ids: NDArray[np.str_],
    sort_time: bool,
) -> Interactions:
    """A table under a given numbering; `stamps` are its times, `sort_time` False keeps the rows' order per user."""
    user, item = (_place(coded(table[c]), ids) for c, ids in (("user", user_ids), ("item", item_ids)))
    rating = table.get("rating")
    value = np.ones(len(user), np.float32) if rating is None else np.asarray(rating).astype(np.float32)
    stamps = stamps.astype(np.int64)
    order = np.lexsort((stamps, user)) if sort_time else np.argsort(user, kind="stable")
    return Interactions(user[order], item[order], value[order], stamps[order], user_ids, item_ids)


def coded(column: Column) -> Coded:
    """The column, which must be one of ids."""
    assert isinstance(column, Coded)
    return column


def _used(column: Column) -> list[str]:
    texts = coded(column)
    return [texts.ids[k] for k in np.unique(texts.index)]


def _union(ids: list[list[str]]) -> NDArray[np.str_]:
    return sorted_ids(list(dict.fromkeys(text for some in ids for text in some)))[0]


def _place(column: Coded, ids: NDArray[np.str_]) -> IntArray:
    """[N] position of each value among `ids`.

    Raises:
        DataError: a value is not there.
    """
    position = {text: k for k, text in enumerate(ids.tolist())}
    used = np.unique(column.index)
    table = np.zeros(len(column.ids), dtype=np.int64)
    for k in used.tolist():
        if column.ids[k] not in position:
            raise DataError(
                f"id {column.ids[k]!r} is not among the split's users and items: write the split again"
            )
        table[k] = position[column.ids[k]]
    return table[column.index]
