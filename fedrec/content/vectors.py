"""Vectors that someone else made (of images, sound, a larger encoder), read from a file and matched by item id.

    vectors.npz          arrays `ids` [N] and `vectors` [N, F]
    vectors.safetensors  tensors `vectors` [N, F] and, for ids that are numbers, `ids` [N]
    vectors.npy          [N, F]
    vectors.ids.txt      beside any of them that has no ids inside: one id per line, UTF-8

Nothing is unpickled. Letters: N rows of the file, I items, F width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fedrec.core.errors import DataError
from fedrec.core.interactions import FloatArray
from fedrec.data.files import decode, open_bytes, read_arrays

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ItemVectors:
    """Vectors by item id.

    Attributes:
        ids: [N] str, all different.
        vectors: [N, F] float32, finite.

    Raises:
        DataError: they do not fit together.
    """

    ids: NDArray[np.str_]
    vectors: FloatArray

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.ids.shape != self.vectors.shape[:1]:
            raise DataError(
                f"{self.ids.shape} ids for vectors of shape {self.vectors.shape}: give one id and one row per item"
            )
        if not np.isfinite(self.vectors).all():
            raise DataError("a vector holds NaN or infinity: leave the rows of unknown items out")
        if len(np.unique(self.ids)) != len(self.ids):
            raise DataError("an item id stands twice beside the vectors: give each item once")

    def align(self, item_ids: NDArray[np.str_]) -> FloatArray:
        """[I, F] in the order of `item_ids`; zeros for items that have no vector."""
        place = {item: row for row, item in enumerate(self.ids.tolist())}
        out = np.zeros((len(item_ids), self.vectors.shape[1]), dtype=np.float32)
        known = [(row, place[item]) for row, item in enumerate(item_ids.tolist()) if item in place]
        if known:
            rows, found = np.array(known).T
            out[rows] = self.vectors[found]
        return out


def read_vectors(path: Path) -> ItemVectors:
    """The vectors of a file and their ids; the forms are listed on top of this module.

    Raises:
        DataError: the file is missing, damaged, of another form, or its ids are missing or do not fit.
    """
    arrays = _arrays(path)
    if "vectors" not in arrays:
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected an array 'vectors'")
    values = arrays["vectors"]
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path} holds vectors of type {values.dtype}: expected numbers")
    ids = arrays["ids"].astype(np.str_) if "ids" in arrays else _ids_beside(path)
    try:
        # Whatever is too large for a float32 becomes infinite, and that is refused.
        with np.errstate(over="ignore"):
            return ItemVectors(ids, values.astype(np.float32))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _arrays(path: Path) -> Arrays:
    readers = {".npz": read_arrays, ".npy": _npy, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise DataError(f"{path} is no file of vectors: expected .npz, .npy or .safetensors")
    try:
        return readers[path.suffix](path)
    except DataError:
        raise
    # What a damaged header sets off reaches from syntax errors to memory errors.
    except Exception as error:
        raise DataError(f"{path} is no whole {path.suffix} file ({error}): write it again") from error


def _npy(path: Path) -> Arrays:
    with open_bytes(path) as stream:
        return {"vectors": np.lib.format.read_array(stream, allow_pickle=False)}


def _safetensors(path: Path) -> Arrays:
    with safe_open(path, framework="numpy") as file:
        arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        named = (file.metadata() or {}).get("ids")
    if named is None:
        return arrays
    try:
        return arrays | {"ids": np.array(json.loads(named), dtype=np.str_)}
    except ValueError as error:
        raise DataError(f"{path} states ids that are no JSON list of texts: write it again") from error


def _ids_beside(path: Path) -> NDArray[np.str_]:
    beside = path.with_suffix(".ids.txt")
    if not beside.is_file():
        raise DataError(f"{path} holds no ids: add an array 'ids', or write {beside.name}, one id per line")
    with open_bytes(beside) as stream:
        return np.array(decode(stream.read()).splitlines(), dtype=np.str_)
