"""One codec for requests and replies: named arrays and a flat header of scalars, whatever carries them.

What arrives was made by someone else, so decoding checks everything that later code relies on: names (they
become parts of file names), types of arrays (nothing that needs pickle), sizes. What the values mean is for
whoever asked to check. A message is anything with the five fields of `fedrec.core.messages`: this module
names no class of it and so needs numpy only. Out of scope: how bytes travel, compression, signatures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError

Arrays = dict[str, NDArray[np.generic]]
Scalar = str | int | float | bool
Header = dict[str, Scalar]

ENVELOPE = ("kind", "round", "phase")
META = "meta."
MAX_ARRAYS = 256
MAX_META = 256
MAX_TEXT = 4096
MAX_DIMENSIONS = 8
MAX_ROUND = 2**31 - 1
#: Carriers hold signed 64-bit integers.
MAX_INT = 2**63 - 1
#: Bytes of one message; far above any model here, far below a node's memory.
MAX_BYTES = 1 << 31

_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@:-]{0,127}")
_META_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@:-]{0,63}")
_INTS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = _INTS | {"bool", "float16", "float32", "float64"}


class Message(Protocol):
    """A `Request` or a `Reply`."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def round(self) -> int: ...  # noqa: D102
    @property
    def phase(self) -> str: ...  # noqa: D102
    @property
    def arrays(self) -> Arrays: ...  # noqa: D102
    @property
    def meta(self) -> dict[str, Scalar]: ...  # noqa: D102


M = TypeVar("M", bound=Message)


def encode(message: Message) -> tuple[Arrays, Header]:
    """Contiguous little-endian arrays and a flat header; meta fields are prefixed with `meta.`.

    Raises:
        ProtocolError: the message breaks a limit of the format, which is a mistake of the sender.
    """
    arrays = {name: _contiguous(name, values) for name, values in message.arrays.items()}
    header: Header = {name: getattr(message, name) for name in ENVELOPE}
    header |= {META + name: _plain(value) for name, value in message.meta.items()}
    _check(arrays, header)
    return arrays, header


def decode(arrays: Mapping[str, object], header: Mapping[str, object], make: Callable[..., M]) -> M:
    """The message of a pair made by `encode`: `make(kind, round, phase, arrays, meta)`.

    Raises:
        ProtocolError: the pair is not what `encode` makes.
    """
    _check(arrays, header)
    meta = {name.removeprefix(META): value for name, value in header.items() if name.startswith(META)}
    return make(header["kind"], header["round"], header["phase"], dict(arrays), meta)


def wire_bytes(message: Message) -> int:
    """Bytes of the arrays' values and of the header as compact JSON; what a carrier adds is not counted."""
    arrays, header = encode(message)
    return sum(values.nbytes for values in arrays.values()) + len(json.dumps(header, separators=(",", ":")))


def _contiguous(name: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
    if not isinstance(values, np.ndarray):
        raise ProtocolError(f"array {name!r} is a {type(values).__name__}: expected a numpy array")
    little = values.dtype.newbyteorder("<") if values.dtype.kind in "iuf" else values.dtype
    # ascontiguousarray would turn a scalar array into a vector.
    return np.ascontiguousarray(values, dtype=little).reshape(values.shape)


def _plain(value: object) -> Scalar:
    """A scalar of numpy as one of Python; anything else is left for the checks to refuse."""
    return value.item() if isinstance(value, np.generic) else value  # type: ignore[return-value]


def _check(arrays: Mapping[str, object], header: Mapping[str, object]) -> None:
    if len(arrays) > MAX_ARRAYS or len(header) > MAX_META + len(ENVELOPE):
        raise ProtocolError(
            f"message of {len(arrays)} arrays and {len(header)} fields: "
            f"expected at most {MAX_ARRAYS} and {MAX_META}"
        )
    total = sum(_check_array(name, values) for name, values in arrays.items())
    if total > MAX_BYTES:
        raise ProtocolError(f"message of {total} bytes: expected at most {MAX_BYTES}")
    _check_envelope(header)
    for name, value in header.items():
        if name not in ENVELOPE:
            _check_field(name, value)


def _check_array(name: object, values: object) -> int:
    """Bytes of a permitted array."""
    if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
        raise ProtocolError(f"array name {name!r:.80}: expected up to 128 letters, digits and _./@:-")
    if not isinstance(values, np.ndarray) or values.dtype.name not in _DTYPES or values.ndim > MAX_DIMENSIONS:
        what = (
            f"{values.dtype}, {values.ndim} axes" if isinstance(values, np.ndarray) else type(values).__name__
        )
        raise ProtocolError(f"array {name!r} is {what}: expected numbers with at most {MAX_DIMENSIONS} axes")
    return values.nbytes


def _check_envelope(header: Mapping[str, object]) -> None:
    for name in ("kind", "phase"):
        value = header.get(name)
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            raise ProtocolError(f"header field {name} is {value!r:.80}: expected a short word in lower case")
    number = header.get("round")
    if type(number) is not int or not 0 <= number <= MAX_ROUND:
        raise ProtocolError(f"header field round is {number!r:.80}: expected a number from 0 to {MAX_ROUND}")


def _check_field(name: object, value: object) -> None:
    if not isinstance(name, str) or not name.startswith(META) or not _META_NAME.fullmatch(name[len(META) :]):
        raise ProtocolError(
            f"header field {name!r:.80} is unknown: expected kind, round, phase and meta.<name>"
        )
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ProtocolError(
                f"header field {name} has {len(value)} characters: expected at most {MAX_TEXT}"
            )
    elif type(value) is int:
        if abs(value) > MAX_INT:
            raise ProtocolError(f"header field {name} is too large: expected at most {MAX_INT}")
    elif type(value) not in (bool, float):
        raise ProtocolError(
            f"header field {name} is a {type(value).__name__}: expected text, a number or a truth value"
        )
