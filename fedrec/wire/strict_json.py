"""JSON that is signed or hashed: one form when written, nothing doubtful when read."""

from __future__ import annotations

import json
import math
from typing import Any

from fedrec.core.errors import BadContent

MAX_DEPTH = 12


def canonical(value: object) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only, finite numbers.

    Raises:
        BadContent: the value cannot be written as JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadContent(f"not JSON ({error}): give plain, finite values") from error


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no key twice, no NaN or Infinity, not deep.

    Raises:
        BadContent: it is not that.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite
        )
        _shallow(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise BadContent(f"not a valid document ({error!s:.80}): it is broken; fetch it again") from error
    if not isinstance(value, dict):
        raise BadContent("not a valid document (not a JSON object): it is broken; fetch it again")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _shallow(value: object, left: int) -> None:
    if left == 0:
        raise ValueError("nested too deep")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _shallow(child, left - 1)
