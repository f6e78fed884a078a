"""Make the bundled MovieTweetings: one small `.npz` without pickled objects.

    python -m fedrec.data.loaders._build_bundle FOLDER_WITH_ratings.dat_AND_movies.dat

gives the same bytes again. Users are numbered by the time of their first rating, so that the numbers of the original,
which its `users.dat` (not bundled) links to Twitter accounts, are gone. Ratings and times stay: someone who has the
original files can still match them, and their publisher offers these files to everyone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrec.data.bundled.read import BUNDLE
from fedrec.data.files import Source
from fedrec.data.loaders import load_dataset


def build(folder: Path, target: Path = BUNDLE) -> None:
    """Write the bundle from the original files."""
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


def _bytes(lines: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)


if __name__ == "__main__":
    build(Source.at(Path(sys.argv[1])).path)
