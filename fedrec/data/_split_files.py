"""Splits written to be handed on: a folder of tables in the data set's own ids.

`train`, `validation`, `test`, `support`, `users` and `items` (CSV or Parquet) and `split.json` (rule, sizes); where
users wrote something, vectors of it in `reviews.npz`, an array per part in the order of its rows. Reading gives
the same split exactly. Out of scope: the rules (`splits`), splits in other shapes (`prepared`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError, EnvironmentProblem
from fedrec.core.interactions import Interactions
from fedrec.data._arrow import pyarrow_or_none
from fedrec.data._prepared import PART_FIELDS, PARTS, coded, numbered_part, whole_table
from fedrec.data.files import read_arrays
from fedrec.data.rows import Column, Field
from fedrec.data.split import Split

VERSION = 1
REVIEWS = "reviews.npz"


def write_split(
    split: Split, folder: Path, rule: str = "", format: Literal["auto", "csv", "parquet"] = "auto"
) -> Path:
    """Write a split in the data set's own ids, to be read here or by anyone else.

    Args:
        split: what is written.
        folder: made if missing; files of an older split in it are removed.
        rule: how the split was made, for readers of `split.json`.
        format: "auto" is Parquet where pyarrow is installed, otherwise CSV.

    Returns:
        The folder.
    """
    kind = ("parquet" if pyarrow_or_none() else "csv") if format == "auto" else format
    if kind == "parquet" and pyarrow_or_none() is None:
        raise EnvironmentProblem(
            "a split as Parquet needs pyarrow: pip install 'fedrec[export]', or write CSV"
        )
    _check_ids(split)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "split.json").unlink(missing_ok=True)
    assert split.user_key is not None
    sizes = {}
    for name in PARTS:
        for suffix in ("csv", "parquet"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        part: Interactions | None = getattr(split, name)
        if part is not None:
            sizes[name] = len(part)
            _write_table(folder / f"{name}.{kind}", _part_table(part))
    _write_reviews(split, folder / REVIEWS)
    _write_table(folder / f"users.{kind}", {"user": split.train.user_ids, "key": split.user_key})
    _write_table(folder / f"items.{kind}", {"item": split.train.item_ids})
    facts = {"format": "fedrec-split", "version": VERSION, "files": kind, "rule": rule, "interactions": sizes}
    facts |= {"users": split.train.n_users, "items": split.train.n_items}
    # Written last: a folder without it is a split that was never finished.
    (folder / "split.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def read_split(folder: Path) -> Split:
    """The split that `write_split` wrote, exactly.

    Raises:
        DataError: the folder holds no whole split.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        kind, sizes = facts["files"], facts["interactions"]
        if facts["version"] != VERSION:
            raise DataError(f"{folder} is a split of version {facts['version']}: this fedrec reads {VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no finished split (split.json: {error}): write it again") from error
    users = whole_table(
        folder / f"users.{kind}", [Field("user", "user", "id"), Field("key", "key", "seconds")]
    )
    items = whole_table(folder / f"items.{kind}", [Field("item", "item", "id")])
    user_ids, item_ids = _texts(users["user"]), _texts(items["item"])
    parts: dict[str, Interactions | None] = {}
    for name in PARTS:
        parts[name] = None
        if name in sizes:
            parts[name] = _read_part(folder / f"{name}.{kind}", sizes[name], user_ids, item_ids)
    if (folder / REVIEWS).exists():
        reviews = read_arrays(folder / REVIEWS)
        parts = {n: p if p is None else replace(p, review=reviews.get(n)) for n, p in parts.items()}
    train = parts["train"]
    if train is None:
        raise DataError(f"{folder} holds no training part: write the split again")
    user_key = np.asarray(users["key"], dtype=np.int64)
    return Split(train, parts["validation"], parts["test"], parts["support"], user_key)


def _write_reviews(split: Split, path: Path) -> None:
    path.unlink(missing_ok=True)
    parts: dict[str, Interactions | None] = {name: getattr(split, name) for name in PARTS}
    reviews = {n: p.review for n, p in parts.items() if p is not None and p.review is not None}
    if reviews:
        np.savez(path, allow_pickle=False, **reviews)


def _texts(column: Column) -> NDArray[np.str_]:
    texts = coded(column)
    return np.array(texts.ids, dtype=np.str_)[texts.index]


def _part_table(part: Interactions) -> dict[str, NDArray[Any]]:
    value = part.value.astype(np.float64)
    ids = {"user": part.user_ids[part.user], "item": part.item_ids[part.item]}
    return ids | {"rating": value, "timestamp": part.timestamp}


def _read_part(path: Path, size: int, user_ids: NDArray[np.str_], item_ids: NDArray[np.str_]) -> Interactions:
    if not size:
        none = np.zeros(0, dtype=np.int64)
        return Interactions(none, none, none.astype(np.float32), none, user_ids, item_ids)
    table = whole_table(path, list(PART_FIELDS))
    stamps = np.asarray(table["timestamp"])
    if len(stamps) != size:
        raise DataError(f"{path} has {len(stamps)} rows where split.json says {size}: write the split again")
    return numbered_part(table, stamps, user_ids, item_ids, sort_time=False)


def _write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    if path.suffix == ".parquet":
        pa = pyarrow_or_none()
        pa.parquet.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    path.write_text(text.getvalue(), encoding="utf-8", newline="")


def _check_ids(split: Split) -> None:
    for what, ids in (("user", split.train.user_ids), ("item", split.train.item_ids)):
        odd = [text for text in ids.tolist() if not text or text != text.strip()]
        if odd:
            raise DataError(
                f"{what} id {odd[0]!r} is empty or has spaces around it, which no table keeps: rename it"
            )
