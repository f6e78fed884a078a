"""From one version of a model to the next in fewer bytes.

The difference of all tensors, byte by byte modulo 256, with the bytes of equal weight put side by side, compressed:
rows that did not change cost next to nothing, 8-bit weights that moved by one step cost a few bits. Nothing in a
delta is believed: sizes come from the signed manifest, and the result must have the hashes in it.
Out of scope: whether it pays (`package`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import BadContent
from fedrec.core.files import Arrays
from fedrec.wire.manifest import TensorEntry

MAX_HEADER_BYTES = 1 << 20
_LEVEL = 6


def make_delta(old: Mapping[str, Arrays], new: Mapping[str, Arrays], headers: Mapping[str, Any]) -> bytes:
    """What leads from the tensors of one package to those of another.

    Args:
        old, new: by file, then by tensor.
        headers: by file, of the new ones.
    """
    head = json.dumps(headers, sort_keys=True).encode()
    packer = zlib.compressobj(_LEVEL)
    parts = [packer.compress(len(head).to_bytes(4, "big") + head)]
    for file in sorted(new):
        for name in sorted(new[file]):
            values = new[file][name]
            base = _base(old.get(file, {}).get(name), values.dtype, values.nbytes)
            parts.append(packer.compress(_planes(_raw(values) - base, values.itemsize).tobytes()))
    return b"".join([*parts, packer.flush()])


def apply_delta(
    delta: bytes, old: Mapping[str, Arrays], tensors: Mapping[str, TensorEntry]
) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """The tensors of the new package by file, and its headers.

    Args:
        delta: of `make_delta`.
        old: by file, then by tensor.
        tensors: of the new manifest, by "file/name".

    Raises:
        BadContent: it does not lead to the tensors of the manifest.
    """
    reader = _Reader(delta)
    headers = _headers(reader)
    new: dict[str, Arrays] = {}
    for file, name, entry in _in_order(tensors):
        dtype = np.dtype(entry.dtype)
        change = np.frombuffer(reader.take(entry.nbytes), dtype=np.uint8)
        base = _base(old.get(file, {}).get(name), dtype, entry.nbytes)
        values = (_unplanes(change, dtype.itemsize) + base).view(dtype).reshape(entry.shape)
        if TensorEntry.of(values) != entry:
            raise BadContent(
                f"delta does not lead to tensor {file}/{name} of the manifest: fetch the whole file"
            )
        new.setdefault(file, {})[name] = values
    reader.end()
    return new, headers


def tensor_entries(files: Mapping[str, Arrays]) -> dict[str, TensorEntry]:
    """Entries for a manifest, by "file/name"."""
    return {
        f"{file}/{name}": TensorEntry.of(values)
        for file, arrays in files.items()
        for name, values in arrays.items()
    }


def _headers(reader: _Reader) -> dict[str, Any]:
    size = int.from_bytes(reader.take(4), "big")
    if size > MAX_HEADER_BYTES:
        raise BadContent(f"delta with a header of {size} bytes: fetch the whole file")
    try:
        headers = json.loads(reader.take(size))
    except (ValueError, RecursionError) as error:
        raise BadContent("delta without a header: fetch the whole file") from error
    if not isinstance(headers, dict) or not all(isinstance(header, dict) for header in headers.values()):
        raise BadContent("delta without a header: fetch the whole file")
    return headers


def _in_order(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, str, TensorEntry]]:
    """By file, then by name, as `make_delta` goes."""
    for file, name in sorted(tuple(key.partition("/")[::2]) for key in tensors):
        yield file, name, tensors[f"{file}/{name}"]


def _raw(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _base(old: NDArray[np.generic] | None, dtype: np.dtype[Any], size: int) -> NDArray[np.uint8]:
    """Bytes of the old tensor, cut or filled with zeros; all zeros for another type."""
    base = np.zeros(size, np.uint8)
    if old is not None and old.dtype == dtype:
        raw = _raw(old)[:size]
        base[: len(raw)] = raw
    return base


def _planes(raw: NDArray[np.uint8], itemsize: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(raw.reshape(-1, itemsize).T).reshape(-1)


def _unplanes(raw: NDArray[np.uint8], itemsize: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(raw.reshape(itemsize, -1).T).reshape(-1)


class _Reader:
    """Decompresses exactly as much as is asked for."""

    def __init__(self, data: bytes) -> None:
        self._unpacker, self._left = zlib.decompressobj(), data

    def take(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            try:
                part = self._unpacker.decompress(self._left, missing)
            except zlib.error as error:
                raise BadContent(f"delta cannot be unpacked ({error}): fetch the whole file") from error
            self._left = self._unpacker.unconsumed_tail
            if not part:
                raise BadContent("delta ends too early: fetch the whole file")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        try:
            more = self._unpacker.decompress(self._left, 1)
        except zlib.error as error:
            raise BadContent(f"delta cannot be unpacked ({error}): fetch the whole file") from error
        if more or not self._unpacker.eof or self._unpacker.unused_data:
            raise BadContent("delta goes on after its end: fetch the whole file")
