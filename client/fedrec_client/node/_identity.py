"""Who a node speaks for: by what its seeded noise differs from that of others, and who is charged for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedrec.core.interactions import IntArray


def identity_of(user_key: IntArray) -> str:
    """Tells nodes apart by whom they host, so that seeded noise differs between them."""
    return hashlib.sha256(np.ascontiguousarray(user_key).tobytes()).hexdigest()[:16]


def subject_of(user_key: IntArray, folder: Path | None) -> str:
    """Who is charged. A node charges all its users alike; one who joins must not begin a new book."""
    if len(user_key) == 1:
        return f"user:{int(user_key[0])}"
    return f"each of the users of node {folder.name if folder else 'in memory'}"
