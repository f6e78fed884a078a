"""Weights between items, dense or sparse, at full precision or in 8 bits: the matrix W behind item-item scores.

Out of scope: what is scored with them (`item_item`), weights that a graph implies (`graph`).

Letters: I items, L entries of a history.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Scores
from fedrec.ranking.tables import LEVELS, Table


class Weights(Protocol):
    """W [I, I]."""

    @property
    def n_items(self) -> int:
        """I."""
        ...

    def weighted_sum(self, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> Scores:
        """[I] Σ_h weight_h W_h."""
        ...

    def column(self, rows: NDArray[np.int64], item: int) -> NDArray[np.float64]:
        """[L] W_h,item."""
        ...

    def row(self, item: int) -> Scores:
        """[I] one row."""
        ...

    def features(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, n] rows at the columns of these items, all different: how they speak for each other."""
        ...

    def quantised(self) -> Weights:
        """The same in 8 bits."""
        ...

    def to_arrays(self) -> Arrays:
        """For a file."""
        ...


class DenseWeights:
    """All of W, as a table."""

    def __init__(self, table: Table) -> None:
        if table.shape[0] != table.shape[1]:
            raise ValueError(f"weights of shape {table.shape}: expected a square")
        self.table = table

    @property
    def n_items(self) -> int:
        """See `Weights`."""
        return self.table.shape[0]

    def weighted_sum(self, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> Scores:
        """See `Weights`."""
        return np.asarray(weight.astype(np.float32) @ self.table.rows(rows), dtype=np.float32)

    def column(self, rows: NDArray[np.int64], item: int) -> NDArray[np.float64]:
        """See `Weights`."""
        return np.asarray(self.table.rows(rows)[:, item], dtype=np.float64)

    def row(self, item: int) -> Scores:
        """See `Weights`."""
        return np.array(self.table.rows(np.array([item]))[0], dtype=np.float32)

    def features(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Weights`."""
        return self.table.cells(items, items)

    def pruned(self, k: int) -> SparseWeights:
        """The k largest weights of each row, by size."""
        n = self.n_items
        k = min(k, n)
        columns, values = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        for item in range(n):
            row = self.row(item)
            kept = np.sort(np.argpartition(-np.abs(row), k - 1)[:k])
            columns[item], values[item] = kept, row[kept]
        return SparseWeights(np.arange(n + 1, dtype=np.int64) * k, columns.reshape(-1), values.reshape(-1))

    def quantised(self) -> DenseWeights:
        """See `Weights`."""
        return DenseWeights(self.table.quantised())

    def to_arrays(self) -> Arrays:
        """See `Weights`."""
        return self.table.to_arrays("weights")


class SparseWeights:
    """Some of W: row h has the columns index[indptr[h]:indptr[h + 1]], ascending.

    Args:
        indptr: [I + 1].
        index: [E] int32.
        values: [E] float32, or int8 with a scale.
        scale: [I] of the rows; None with float32.
    """

    def __init__(
        self,
        indptr: NDArray[np.int64],
        index: NDArray[np.int32],
        values: NDArray[Any],
        scale: NDArray[np.float32] | None = None,
    ) -> None:
        n = len(indptr) - 1
        if n < 0 or indptr[0] != 0 or indptr[-1] != len(index) or np.any(np.diff(indptr) < 0):
            raise ValueError("row offsets do not fit")
        if len(values) != len(index) or (len(index) and not 0 <= index.min() <= index.max() < n):
            raise ValueError("columns do not fit")
        if (values.dtype == np.int8) != (scale is not None) or (scale is not None and len(scale) != n):
            raise ValueError("8-bit weights need one scale per row")
        self.indptr, self.index, self.values, self.scale = indptr, index, values, scale

    @property
    def n_items(self) -> int:
        """See `Weights`."""
        return len(self.indptr) - 1

    def weighted_sum(self, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> Scores:
        """See `Weights`."""
        parts = [self._part(int(h)) for h in rows]
        if not parts:
            return np.zeros(self.n_items, np.float32)
        values = np.concatenate([values * w for (_, values), w in zip(parts, weight, strict=True)])
        index = np.concatenate([index for index, _ in parts])
        return np.bincount(index, values, minlength=self.n_items).astype(np.float32)

    def column(self, rows: NDArray[np.int64], item: int) -> NDArray[np.float64]:
        """See `Weights`."""
        return np.array([self._one(int(h), item) for h in rows], dtype=np.float64)

    def row(self, item: int) -> Scores:
        """See `Weights`."""
        out = np.zeros(self.n_items, np.float32)
        index, values = self._part(item)
        out[index] = values
        return out

    def features(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Weights`."""
        column = np.full(self.n_items, -1, dtype=np.int64)
        column[items] = np.arange(len(items))
        counts = self.indptr[items + 1] - self.indptr[items]
        row = np.repeat(np.arange(len(items)), counts)
        entry = np.arange(len(row)) + np.repeat(self.indptr[items] - (np.cumsum(counts) - counts), counts)
        at = column[self.index[entry]]
        row, entry, at = row[at >= 0], entry[at >= 0], at[at >= 0]
        out = np.zeros((len(items), len(items)), np.float32)
        out[row, at] = (
            self.values[entry] if self.scale is None else self.values[entry] * self.scale[items[row]]
        )
        return out

    def quantised(self) -> SparseWeights:
        """See `Weights`."""
        if self.scale is not None:
            return self
        counts = np.diff(self.indptr)
        owner = np.repeat(np.arange(self.n_items), counts)
        largest = np.zeros(self.n_items, np.float32)
        np.maximum.at(largest, owner, np.abs(self.values))
        scale = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
        return SparseWeights(
            self.indptr, self.index, np.rint(self.values / scale[owner]).astype(np.int8), scale
        )

    def to_arrays(self) -> Arrays:
        """See `Weights`."""
        arrays: Arrays = {
            "weights.indptr": self.indptr,
            "weights.index": self.index,
            "weights.values": self.values,
        }
        return arrays if self.scale is None else arrays | {"weights.row_scale": self.scale}

    def _part(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        part = slice(self.indptr[row], self.indptr[row + 1])
        values = self.values[part]
        return self.index[part], values if self.scale is None else values * self.scale[row]

    def _one(self, row: int, item: int) -> float:
        index, values = self._part(row)
        place = int(np.searchsorted(index, item))
        return float(values[place]) if place < len(index) and index[place] == item else 0.0
