"""A fingerprint of a question, by which devices know that all of them were given the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What a question says of how a node keeps its own state; nothing that is sent depends on it.
NOT_BOUND = ("persist",)


def question_digest(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a model and of everything else that a question says, such as which rows are to be sent.

    What devices compute with must be the same for all, or one device's update can be read out of the sum.
    """
    said = {name: value for name, value in meta.items() if name not in NOT_BOUND}
    digest = hashlib.sha256(state_digest(arrays).encode())
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def state_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256, in hex, of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
        digest.update(values.data.cast("B") if values.size else b"")
    return digest.hexdigest()
