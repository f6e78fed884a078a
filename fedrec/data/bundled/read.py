"""Reads the bundled MovieTweetings: one small `.npz` without pickled objects.

Out of scope: how it is made (`fedrec.data.loaders._build_bundle`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import Catalog, Interactions
from fedrec.data.files import read_arrays

BUNDLE = Path(__file__).with_name("movietweetings.npz")


def load_bundle(path: Path = BUNDLE) -> tuple[Interactions, Catalog]:
    """Interactions and films of the bundle; users are called "1", "2", ...

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        arrays = read_arrays(path)
        ids, titles, genres = (_lines(arrays[name]) for name in ("ids", "titles", "genres"))
        counts = arrays["counts"].astype(np.int64)
        user = np.repeat(np.arange(len(counts)), counts)
        stamps = _times(arrays["gap_seconds"].astype(np.int64), counts)
    except (ValueError, KeyError, DataError) as error:
        raise DataError(f"bundled data {path} cannot be read ({error}): install fedrec again") from error
    item_ids = np.array(ids, dtype=np.str_)
    user_ids = np.arange(1, len(counts) + 1).astype(np.str_)
    value = arrays["rating"].astype(np.float32)
    catalog = Catalog(
        item_ids, np.array(titles, dtype=np.str_), tuple(tuple(filter(None, g.split("|"))) for g in genres)
    )
    return Interactions(user, arrays["item"].astype(np.int64), value, stamps, user_ids, item_ids), catalog


def _times(gaps: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Seconds since 1970; a user's first gap counts from the first rating of the user before."""
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    start = np.cumsum(gaps[begins])
    within = gaps.copy()
    within[begins] = 0
    running = np.cumsum(within)
    return np.asarray(np.repeat(start - running[begins], counts) + running)


def _lines(data: NDArray[Any]) -> list[str]:
    return data.tobytes().decode().split("\n")
