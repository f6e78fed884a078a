"""Data of the caller's own for training: from arrays or from a data frame, then split.

Out of scope: files and known data sets (`fedrec.data`).

Letters: N interactions, U users, I items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.extras import needs
from fedrec.core.interactions import Catalog, Dataset, Interactions
from fedrec.data.rows import Field
from fedrec.data.tabular import choose
from fedrec_simulations.experiments.prepare import Prepared, prepare_dataset
from fedrec_simulations.experiments.sections import IN_MEMORY, DataSection, SplitSection

Values = Sequence[Any] | NDArray[np.generic]
Method = Literal["leave_one_out", "temporal", "per_user_ratio", "held_out_users"]


def from_arrays(
    user: Values,
    item: Values,
    rating: Values | None = None,
    timestamp: Values | None = None,
    *,
    titles: Mapping[Any, str] | None = None,
    categories: Mapping[Any, Sequence[str]] | None = None,
    name: str = "data",
) -> Dataset:
    """Interactions that are in memory.

    Args:
        user: [N] ids of any kind, one per interaction.
        item: [N] ids of any kind.
        rating: [N] numbers; None: every interaction counts 1.
        timestamp: [N] seconds since 1970; None: the order of the rows is the order in time.
        titles: item id to its title; items left out are shown by their id.
        categories: item id to names of its categories, for diversity.
        name: by which reports, and privacy ledgers, know these users' data.

    Raises:
        DataError: columns of different lengths, no rows, or ids that cannot be compared with each other.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 2], item=["tea", "milk", "tea"], titles={"tea": "Green tea"})
        >>> data.interactions.n_users, data.interactions.n_items, len(data.interactions)
        (2, 2, 3)
        >>> data.catalog.titles.tolist()
        ['', 'Green tea']
    """
    columns = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    arrays = {key: _array(values) for key, values in columns.items() if values is not None}
    _check(arrays)
    try:
        interactions = Interactions.from_columns(
            arrays["user"], arrays["item"], arrays.get("rating"), arrays.get("timestamp")
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the columns cannot be read ({error}): expected ids of one type and numbers for rating and timestamp"
        ) from error
    return Dataset(name, interactions, _catalog(interactions.item_ids, titles or {}, categories or {}))


def from_frame(
    frame: Any,
    *,
    user: str = "user",
    item: str = "item",
    rating: str | None = None,
    timestamp: str | None = None,
    items: Any = None,
    name: str = "data",
) -> Dataset:
    """Interactions of a data frame of pandas, polars or pyarrow, one row each.

    Args:
        frame: [N] rows.
        user, item: names of the columns with the ids.
        rating: name of the column with a number; None: every interaction counts 1.
        timestamp: name of the column with dates, times, or seconds since 1970; None: the order of the rows.
        items: a frame of the items with the columns `item` and, where known, `title` and `categories` ("a|b");
            None: items are shown by their ids.
        name: by which reports, and privacy ledgers, know these users' data.

    Raises:
        DataError: not a data frame, an unknown column, missing values, or no rows.
        EnvironmentProblem: narwhals, which reads frames of every kind, is not installed.

    Example:
        >>> import fedrec
        >>> import pandas as pd
        >>> visits = pd.DataFrame({"who": ["ann", "ann", "bob"], "page": [3, 1, 3], "at": [20, 10, 30]})
        >>> data = fedrec.from_frame(visits, user="who", item="page", timestamp="at")
        >>> data.interactions.user_ids.tolist(), data.interactions.history(0).tolist()
        (['ann', 'bob'], [0, 1])
    """
    table = _table(frame, "frame")
    wanted = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    columns = {
        role: _column(table, role, column, "frame") for role, column in wanted.items() if column is not None
    }
    titles, categories = ({}, {}) if items is None else _described(_table(items, "items"), item)
    return from_arrays(**columns, titles=titles, categories=categories, name=name)


def split(
    data: Dataset,
    method: Method = "leave_one_out",
    *,
    validation: bool = True,
    fraction: float = 0.1,
    targets: Literal["latest", "random"] = "latest",
    core: int = 1,
    min_rating: float | None = None,
    ratings: bool = False,
    seed: int = 0,
) -> Prepared:
    """Clean a data set and hold a part of it out.

    Of several interactions of a user with one item the latest stays. Rounds are chosen on the validation part and the
    test part is evaluated once, after training.

    Args:
        data: stays as it is.
        method: "leave_one_out" (the last interaction of each user), "temporal" (the last of all), "per_user_ratio",
            or "held_out_users" (users whom no model is trained on).
        validation: hold out a validation part, too.
        fraction: of interactions (temporal, per_user_ratio) or of users (held_out_users) in the test part, 0 to 1.
        targets: which interactions of a user are held out (leave_one_out, held_out_users).
        core: users and items with fewer interactions are removed until none is left; 1: none.
        min_rating: interactions rated below it are dropped, the others count 1; None: every interaction counts 1.
        ratings: values stay the ratings, for models that learn them.
        seed: of the draws.

    Returns:
        The parts with their catalogue, and a description of what was removed.

    Raises:
        ConfigError: arguments that exclude each other.
        DataError: cleaning leaves nothing, or nothing can be held out.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> parts = fedrec.split(data).split
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (2, 2, 2)
    """
    cleaned = DataSection.checked(
        name=data.source or IN_MEMORY, core=core, min_rating=min_rating, ratings=ratings
    )
    rule = SplitSection.checked(
        method=method, validation=validation, fraction=fraction, targets=targets, seed=seed
    )
    return prepare_dataset(data, cleaned, rule)


def _array(values: Values) -> NDArray[np.generic]:
    """Values as an array; dates and times as seconds since 1970."""
    array = np.asarray(values)
    return array.astype("datetime64[s]").astype(np.int64) if array.dtype.kind == "M" else array


def _check(arrays: Mapping[str, NDArray[np.generic]]) -> None:
    lengths = {key: values.shape for key, values in arrays.items()}
    if any(values.ndim != 1 for values in arrays.values()) or len(set(lengths.values())) != 1:
        raise DataError(f"columns of shapes {lengths}: expected one value per interaction in each")
    if not len(arrays["user"]):
        raise DataError("there are no interactions: give at least one row")
    for key in ("rating", "timestamp"):
        values = arrays.get(key)
        if values is not None and (values.dtype.kind not in "iufb" or not np.isfinite(values).all()):
            raise DataError(f"column {key!r} holds {values.dtype}: expected finite numbers")


def _catalog(
    item_ids: NDArray[np.str_], titles: Mapping[Any, str], categories: Mapping[Any, Sequence[str]]
) -> Catalog:
    by_id = {str(key): str(title) for key, title in titles.items()}
    members = {str(key): tuple(map(str, names)) for key, names in categories.items()}
    ids = item_ids.tolist()
    return Catalog(
        item_ids,
        np.array([by_id.get(each, "") for each in ids], dtype=np.str_),
        tuple(members.get(each, ()) for each in ids),
    )


def _table(frame: Any, label: str) -> Any:
    with needs("a data frame"):
        import narwhals
    try:
        return narwhals.from_native(frame, eager_only=True)
    except TypeError as error:
        raise DataError(
            f"{label} is {type(frame).__name__}: expected a data frame of pandas, polars or pyarrow"
        ) from error


def _column(table: Any, role: str, column: str, label: str) -> NDArray[np.generic]:
    """The values of one column; times become seconds since 1970.

    Raises:
        DataError: it does not exist, or values are missing.
    """
    choose(table.columns, Field(role, column, "id"), label)
    series = table[column]
    missing = int(series.is_null().sum())
    if missing:
        raise DataError(f"column {column!r} misses {missing} of {len(series)} values: drop these rows first")
    if series.dtype.is_temporal():
        return np.asarray(series.dt.timestamp("ms").to_numpy(), dtype=np.int64) // 1000
    return np.asarray(series.to_numpy())


def _described(table: Any, item: str) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Titles and categories by item id."""
    key = item if item in table.columns else "item"
    ids = [str(each) for each in _column(table, "item", key, "items").tolist()]
    titles, members = (_known(table, name, ids) for name in ("title", "categories"))
    return titles, {each: names.split("|") for each, names in members.items()}


def _known(table: Any, column: str, ids: list[str]) -> dict[Any, str]:
    """Text by item id, where there is any."""
    if column not in table.columns:
        return {}
    missing = table[column].is_null().to_list()
    values = zip(ids, table[column].to_list(), missing, strict=True)
    return {each: str(text) for each, text, absent in values if not absent and text}
