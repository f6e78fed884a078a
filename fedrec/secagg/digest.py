"""A fingerprint of a model's state, by which devices know that all of them were given the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def state_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256, in hex, of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
        digest.update(values.data.cast("B") if values.size else b"")
    return digest.hexdigest()
