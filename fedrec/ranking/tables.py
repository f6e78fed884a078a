"""Tables of item vectors as they lie on a device: 32-bit floats, or 8-bit integers with a scale per row.

Integers take a quarter of the room and are scored in blocks, so that no float copy of a whole table ever exists.
Rounding is to the nearest of 255 levels between the row's largest value and its negative; a row's error is at most
half a level per value. Out of scope: what the vectors mean (`factors`, `item_item`).

Letters: I rows, d columns.
"""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.items import Arrays

Matrix = NDArray[np.float32]
LEVELS = 127
#: Values of a block that are floats at one time: 4 MB, which stay in a processor's cache.
BLOCK_VALUES = 1 << 20


class Table(Protocol):
    """[I, d] values."""

    @property
    def shape(self) -> tuple[int, int]:
        """(I, d)."""
        ...

    def rows(self, index: NDArray[np.int64]) -> Matrix:
        """[n, d] some rows."""
        ...

    def cells(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Matrix:
        """[n, k] some columns of some rows."""
        ...

    def dot(self, vector: NDArray[np.floating]) -> Matrix:
        """[I] inner products with one vector [d]."""
        ...

    def gramian(self, weight: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """[d, d] Σ_i w_i q_i q_iᵀ."""
        ...

    def quantised(self) -> Table:
        """The same in 8 bits."""
        ...

    def to_arrays(self, name: str) -> Arrays:
        """Under names that begin with `name`."""
        ...


class FloatTable:
    """Rows as they were trained."""

    def __init__(self, values: NDArray[np.floating]) -> None:
        if values.ndim != 2:
            raise ValueError(f"a table of shape {values.shape}: expected two axes")
        self.values = np.ascontiguousarray(values, dtype=np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Table`."""
        return cast(tuple[int, int], self.values.shape)

    def rows(self, index: NDArray[np.int64]) -> Matrix:
        """See `Table`."""
        return self.values[index]

    def cells(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Matrix:
        """See `Table`."""
        return self.values[np.ix_(rows, columns)]

    def dot(self, vector: NDArray[np.floating]) -> Matrix:
        """See `Table`."""
        return self.values @ vector.astype(np.float32)

    def gramian(self, weight: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """See `Table`."""
        return _gramian(self, weight)

    def quantised(self) -> ByteTable:
        """See `Table`."""
        largest = np.abs(self.values).max(axis=1, initial=0.0)
        scale = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
        return ByteTable(np.rint(self.values / scale[:, None]).astype(np.int8), scale)

    def to_arrays(self, name: str) -> Arrays:
        """See `Table`."""
        return {name: self.values}


class ByteTable:
    """Rows of 8-bit integers: value = code * scale of the row."""

    def __init__(self, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
        if codes.ndim != 2 or codes.dtype != np.int8 or scale.shape != codes.shape[:1]:
            raise ValueError(
                f"codes {codes.dtype} {codes.shape} with scales {scale.shape}: expected int8 and one a row"
            )
        self.codes = np.ascontiguousarray(codes)
        self.scale = np.ascontiguousarray(scale, dtype=np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Table`."""
        return cast(tuple[int, int], self.codes.shape)

    def rows(self, index: NDArray[np.int64]) -> Matrix:
        """See `Table`."""
        return cast(Matrix, self.codes[index] * self.scale[index][:, None])

    def cells(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Matrix:
        """See `Table`."""
        return cast(Matrix, self.codes[np.ix_(rows, columns)] * self.scale[rows][:, None])

    def dot(self, vector: NDArray[np.floating]) -> Matrix:
        """See `Table`."""
        n, d = self.shape
        right, out = vector.astype(np.float32), np.empty(n, dtype=np.float32)
        height = max(1, min(n, BLOCK_VALUES // max(d, 1)))
        block = np.empty((height, d), dtype=np.float32)
        for start in range(0, n, height):
            part = self.codes[start : start + height]
            np.copyto(block[: len(part)], part)
            np.dot(block[: len(part)], right, out=out[start : start + len(part)])
        out *= self.scale
        return out

    def gramian(self, weight: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """See `Table`."""
        return _gramian(self, weight)

    def quantised(self) -> ByteTable:
        """See `Table`."""
        return self

    def to_arrays(self, name: str) -> Arrays:
        """See `Table`."""
        return {f"{name}.codes": self.codes, f"{name}.scale": self.scale}


def read_table(arrays: Arrays, name: str) -> Table:
    """The table of `to_arrays`; raises KeyError or ValueError where there is none."""
    if name in arrays:
        return FloatTable(cast(Matrix, arrays[name]))
    return ByteTable(cast(NDArray[np.int8], arrays[f"{name}.codes"]), cast(Matrix, arrays[f"{name}.scale"]))


def _gramian(table: Table, weight: NDArray[np.floating] | None) -> NDArray[np.float64]:
    n, d = table.shape
    total = np.zeros((d, d))
    height = max(1, BLOCK_VALUES // max(d, 1))
    for start in range(0, n, height):
        rows = table.rows(np.arange(start, min(start + height, n))).astype(np.float64)
        total += rows.T @ (rows if weight is None else rows * weight[start : start + height, None])
    return total
