"""Results of a computation on data, or zeros of the same shape: a model that cannot be computed with is no excuse.

An error in the middle of training or scoring depends on the histories it met, so that it would tell about them. What
was computed is brought into the shape that everyone was told of, and what could not be is zero. Out of scope: the
bounds of single users' updates (`fedrec.privacy.clipping`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("fedrec.node")
T = TypeVar("T")


def computed(compute: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """What `compute` gives, or what `otherwise` gives when it fails; the reason stays in this process's log."""
    try:
        with np.errstate(all="ignore"):
            return compute()
    except Exception as error:
        log.error("nothing could be computed from this model; zero is sent", exc_info=error)
        return otherwise()


def alike(arrays: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays with the names, types and shapes of `like`; others are zero, and so is what is not finite."""
    out = {}
    for name, example in like.items():
        values = arrays.get(name, example)
        if values.shape != example.shape or set(arrays) != set(like):
            values = example
        values = np.where(np.isfinite(values), values, 0)
        out[name] = np.ascontiguousarray(values, dtype=example.dtype)
    return out
