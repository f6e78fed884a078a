"""Shards: a split (of some users) as one `.npz` that a node loads fast and exactly, without pickled objects.

Out of scope: splits to be handed on to others (`split_files`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import COLUMNS, Interactions
from fedrec.data._prepared import PARTS
from fedrec.data.files import read_arrays
from fedrec.data.split import Split

VERSION = 1


def save_shard(split: Split, path: Path) -> None:
    """Write a split (of some users) as one `.npz`, replacing an older one in a single step."""
    assert split.user_key is not None
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(VERSION),
        "user_key": split.user_key,
        "user_ids": split.train.user_ids,
        "item_ids": split.train.item_ids,
    }
    for name in PARTS:
        part: Interactions | None = getattr(split, name)
        if part is not None:
            arrays |= {f"{name}.{column}": values for column, values in part.columns().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    temporary.replace(path)


def load_shard(path: Path) -> Split:
    """The split that `save_shard` wrote, exactly.

    Raises:
        DataError: the file is missing, damaged, or no shard.
    """
    try:
        arrays = read_arrays(path)
        parts = {}
        for name in PARTS:
            columns = {c: arrays[f"{name}.{c}"] for c in COLUMNS if f"{name}.{c}" in arrays}
            ids = {"user_ids": arrays["user_ids"], "item_ids": arrays["item_ids"]}
            parts[name] = Interactions(**columns, **ids) if columns else None
        train = parts["train"]
        if train is None:
            raise KeyError("train")
        return Split(train, parts["validation"], parts["test"], parts["support"], arrays["user_key"])
    except (ValueError, KeyError, DataError) as error:
        raise DataError(f"{path} is no whole shard ({error}): set the node up again") from error
