"""Make and read the bundled MovieTweetings: one small `.npz` without pickled objects.

    python -m fedrec.data.bundled.build FOLDER_WITH_ratings.dat_AND_movies.dat

gives the same bytes again. Users are numbered by the time of their first rating, so that the numbers of the original,
which its `users.dat` (not bundled) links to Twitter accounts, are gone. Ratings and times stay: somebody who has the
original files can still match them, and their publisher offers these files to everybody.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.data.files import Source, read_arrays
from fedrec.data.interactions import Catalog, Interactions
from fedrec.errors import DataError

BUNDLE = Path(__file__).with_name("movietweetings.npz")


def build(folder: Path, target: Path = BUNDLE) -> None:
    """Write the bundle from the original files."""
    from fedrec.data.loaders import load_dataset

    dataset = load_dataset("movietweetings", folder)
    data, catalog = dataset.interactions, dataset.catalog
    first = data.timestamp[data.indptr[:-1]]
    users = np.argsort(first, kind="stable")
    order = np.concatenate([np.arange(data.indptr[u], data.indptr[u + 1]) for u in users.tolist()])
    start = first[users]
    gaps = np.diff(data.timestamp[order], prepend=0)
    begins = np.concatenate([[0], np.cumsum(data.counts[users])[:-1]])
    gaps[begins] = np.diff(start, prepend=0)
    texts = {
        "ids": data.item_ids.tolist(),
        "titles": catalog.titles.tolist(),
        "genres": ["|".join(names) for names in catalog.categories],
    }
    np.savez_compressed(
        target,
        counts=data.counts[users].astype(np.uint16),
        item=data.item[order].astype(np.uint16),
        rating=data.value[order].astype(np.uint8),
        gap_seconds=gaps.astype(np.uint32),
        ids=_bytes(texts["ids"]),
        titles=_bytes(texts["titles"]),
        genres=_bytes(texts["genres"]),
    )


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


def _bytes(lines: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


def _lines(data: NDArray[Any]) -> list[str]:
    return data.tobytes().decode().split("\n")


if __name__ == "__main__":
    build(Source.at(Path(sys.argv[1])).path)
