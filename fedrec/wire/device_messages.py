"""Questions and answers of a device as bytes: what the device service carries.

    message   = "FDM1" | u32 bytes of the header | header | array | array | ...      all little-endian
    header    = JSON {"kind", "round", "phase", "meta": {...}, "arrays": [[name, type, [shape]], ...]}, filled up with
                spaces to a multiple of 8; every array is filled up with zeros to a multiple of 8
    question  = common part + own part, two messages of one kind, round and phase; the question has the arrays and
                fields of both. The common part is the same for all devices of a stage, so that it is kept and sent
                once; it is empty (no bytes) where it would be small.

What arrives was made by someone else: `load` and `join` check form and limits (`fedrec.wire.messages`), and what the
values mean is for the caller to check. Arrays that were loaded are views of the message and cannot be written to. Out
of scope: how the bytes travel (`fedrec.wire.proto.device_service`), signatures.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError
from fedrec.wire.messages import META, Arrays, M, Message, Scalar, decode, encode

#: Version of the calls that devices speak; a server answers this one and the one before (1 has no `last_round`).
PROTOCOL = 2
MAGIC = b"FDM1"
#: Common arrays and fields of fewer bytes are sent with each device's own part.
INLINE_BYTES = 4096
MAX_HEADER_BYTES = 1 << 20
JOIN_STATEMENT = b"fedrec devices v1|join|"

_ALIGN = 8
_PREFIX = struct.Struct("<4sI")
_KEYS = {"kind", "round", "phase", "meta", "arrays"}


def dump(message: Message) -> bytes:
    """A message as bytes; the same message gives the same bytes.

    Raises:
        ProtocolError: the message breaks a limit of the format, which is a mistake of the sender.
    """
    arrays, fields = encode(message)
    names = sorted(arrays)
    header = {
        "kind": message.kind,
        "round": message.round,
        "phase": message.phase,
        "meta": {name.removeprefix(META): fields[name] for name in sorted(fields) if name.startswith(META)},
        "arrays": [[name, arrays[name].dtype.name, list(arrays[name].shape)] for name in names],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    if len(text) > MAX_HEADER_BYTES:
        raise ProtocolError(f"header of {len(text)} bytes: expected at most {MAX_HEADER_BYTES}")
    parts = [_PREFIX.pack(MAGIC, len(text)), text]
    for name in names:
        parts += [arrays[name].tobytes(), bytes(-arrays[name].nbytes % _ALIGN)]
    return b"".join(parts)


def load(content: bytes, make: Callable[..., M]) -> M:
    """The message that `dump` made into bytes, as `make(kind, round, phase, arrays, meta)`; arrays are read-only.

    Raises:
        ProtocolError: it is not a message.
    """
    part = _load(content)
    return make(part.kind, part.round, part.phase, part.arrays, part.meta)


def split(requests: Mapping[str, Message]) -> tuple[bytes, dict[str, bytes]]:
    """The common part of the questions of a stage, and each device's own.

    Args:
        requests: by node; of one kind, round and phase.

    Raises:
        ProtocolError: they are of several kinds, rounds or phases, or break a limit of the format.
    """
    if not requests:
        return b"", {}
    all_requests = list(requests.values())
    first = all_requests[0]
    if any((r.kind, r.round, r.phase) != (first.kind, first.round, first.phase) for r in all_requests):
        raise ProtocolError("requests of several kinds, rounds or phases: expected those of one stage")
    arrays = {name for name in first.arrays if _shared(name, [r.arrays for r in all_requests])}
    fields = {name for name in first.meta if all(_same(first.meta, r.meta, name) for r in all_requests)}
    if sum(first.arrays[name].nbytes for name in arrays) < INLINE_BYTES:
        return b"", {node: dump(request) for node, request in requests.items()}
    common = dump(_only(first, arrays, fields))
    own = {
        node: dump(_only(r, r.arrays.keys() - arrays, r.meta.keys() - fields)) for node, r in requests.items()
    }
    return common, own


def join(common: bytes, own: bytes, make: Callable[..., M]) -> M:
    """The question of a device.

    Args:
        common: its common part; empty: there is none.
        own: this device's part.
        make: called with kind, round, phase, arrays and meta.

    Raises:
        ProtocolError: a part is not a message, or they do not belong together.
    """
    part = _load(own)
    if common:
        shared = _load(common)
        if (shared.kind, shared.round, shared.phase) != (part.kind, part.round, part.phase):
            raise ProtocolError("common and own part are of two stages: expected one kind, round and phase")
        if shared.arrays.keys() & part.arrays.keys() or shared.meta.keys() & part.meta.keys():
            raise ProtocolError("common and own part name the same: expected each name once")
        part = _Part(part.kind, part.round, part.phase, shared.arrays | part.arrays, shared.meta | part.meta)
        encode(part)
    return make(part.kind, part.round, part.phase, part.arrays, part.meta)


def join_statement(job: str) -> bytes:
    """What the identity of a device signs to join a cohort of a job (`JoinRequest.proof`)."""
    return JOIN_STATEMENT + job.encode()


@dataclass(frozen=True)
class _Part:
    """A message, or a part of one."""

    kind: str
    round: int
    phase: str
    arrays: Arrays
    meta: dict[str, Scalar]


def _only(request: Message, arrays: set[str], fields: set[str]) -> _Part:
    return _Part(
        request.kind,
        request.round,
        request.phase,
        {name: request.arrays[name] for name in arrays},
        {name: request.meta[name] for name in fields},
    )


def _shared(name: str, all_arrays: Sequence[Mapping[str, NDArray[Any]]]) -> bool:
    """Whether all have the same array under this name, bit for bit."""
    first = all_arrays[0][name]
    content: bytes | None = None
    for arrays in all_arrays:
        other = arrays.get(name)
        if other is first:
            continue
        if other is None or (other.dtype, other.shape) != (first.dtype, first.shape):
            return False
        content = first.tobytes() if content is None else content
        if other.tobytes() != content:
            return False
    return True


def _same(first: Mapping[str, Scalar], other: Mapping[str, Scalar], name: str) -> bool:
    if name not in other:
        return False
    a, b = first[name], other[name]
    return a is b or (type(a) is type(b) and a == b)


def _load(content: bytes) -> _Part:
    if len(content) < _PREFIX.size:
        raise ProtocolError(f"message of {len(content)} bytes: expected at least {_PREFIX.size}")
    magic, size = _PREFIX.unpack_from(content)
    start = _PREFIX.size + size
    if magic != MAGIC or size > MAX_HEADER_BYTES or size % _ALIGN or start > len(content):
        raise ProtocolError("not a message of a device: expected FDM1 and a whole header")
    header = _header(content[_PREFIX.size : start])
    arrays = _arrays(header["arrays"], content, start)
    fields = {META + name: value for name, value in header["meta"].items()}
    fields |= {name: header[name] for name in ("kind", "round", "phase")}
    return decode(arrays, fields, _Part)


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("ascii"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"header is not valid JSON ({error!s:.60}): send it again") from error
    if not isinstance(header, dict) or header.keys() != _KEYS:
        raise ProtocolError(f"header of other fields: expected {', '.join(sorted(_KEYS))}")
    if not isinstance(header["meta"], dict) or not isinstance(header["arrays"], list):
        raise ProtocolError("header is not well formed: expected an object of fields and a list of arrays")
    return header


def _arrays(listed: list[Any], content: bytes, start: int) -> Arrays:
    """Views of the content, which must hold these arrays and nothing else."""
    arrays: Arrays = {}
    for entry in listed:
        name, dtype, shape = _entry(entry)
        if name in arrays:
            raise ProtocolError(f"array {name!r:.80} is listed twice: expected each name once")
        count = math.prod(shape)
        end = start + count * dtype.itemsize
        filled = end + -end % _ALIGN
        if filled > len(content) or any(content[end:filled]):
            raise ProtocolError(f"array {name!r:.80} is not whole: expected {count} values of {dtype}")
        arrays[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
        start = filled
    if start != len(content):
        raise ProtocolError(f"{len(content) - start} bytes after the last array: expected none")
    return arrays


def _entry(entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    match entry:
        case [str(name), str(kind), list(shape)]:
            pass
        case _:
            raise ProtocolError("an array is not well described: expected name, type and shape")
    if kind not in _DTYPES or len(shape) > 32 or any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
        raise ProtocolError(f"array {name!r:.80} is of {kind!r:.20}: expected numbers of a known type")
    return name, _DTYPES[kind], tuple(shape)


def _little(name: str) -> np.dtype[Any]:
    return np.dtype(name).newbyteorder("<")


_DTYPES = {
    name: _little(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    )
}  # fmt: skip


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
