"""Item-item models that serve: score_j = base_j + Σ_h r_h W_hj over the entries h of the history.

Serves EASE, item-kNN, the item graph and private siblings: a row sum is all it takes, so the last click counts at
once. Small catalogues keep W dense, large ones the strongest weights of each row. Out of scope: training.

Letters: I items, L entries of a history, k weights kept per row.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import DataError
from fedrec.ranking.folding import recency
from fedrec.ranking.items import Arrays
from fedrec.ranking.serving import Explanation, Header, History, Person, Scores, ServingModel
from fedrec.ranking.tables import LEVELS, Table, read_table


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


class ItemItem(ServingModel):
    """Weights between items.

    Args:
        weights: W.
        half_life: recency of an entry, in entries; None: none.
        base: [I] what items have for everybody; None: nothing.
    """

    kind: ClassVar[str] = "item_item"

    def __init__(
        self, weights: Weights, half_life: float | None = None, base: NDArray[np.float32] | None = None
    ) -> None:
        if base is not None and base.shape != (weights.n_items,):
            raise ValueError(f"base of shape {base.shape} for {weights.n_items} items")
        self.weights = weights
        self.half_life = half_life
        self.base = base

    @property
    def n_items(self) -> int:
        """See `ServingModel`."""
        return self.weights.n_items

    def fold_in(self, history: History) -> Person:
        """See `ServingModel`; [L] the weight r_h of each entry is all there is to know."""
        if len(history) and history.item.max() >= self.n_items:
            raise DataError(f"a history with item {history.item.max()}: the model has {self.n_items}")
        return Person(history, recency(len(history), self.half_life) * history.strength)

    def scores(self, person: Person) -> Scores:
        """See `ServingModel`."""
        scores = self.weights.weighted_sum(person.history.item, person.state)
        if self.base is not None:
            scores += self.base
        return scores

    def explain(self, person: Person, item: int) -> Explanation:
        """See `ServingModel`."""
        base = 0.0 if self.base is None else float(self.base[item])
        contributions = person.state * self.weights.column(person.history.item, item)
        return Explanation(base + float(contributions.sum()), base, contributions)

    def similar(self, item: int) -> Scores:
        """[I] what the item says for the others."""
        return self.weights.row(item)

    def vectors(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, n] how these items speak for each other, each itself as much as its strongest neighbour."""
        rows = self.weights.features(items)
        rows = rows + rows.T
        np.fill_diagonal(rows, 0.0)
        np.fill_diagonal(rows, np.maximum(np.abs(rows).max(axis=1, initial=0.0), 1e-12))
        return rows

    def quantised(self) -> ItemItem:
        """See `ServingModel`."""
        return ItemItem(self.weights.quantised(), self.half_life, self.base)

    def pruned(self, k: int) -> ItemItem:
        """The same with the k strongest weights of each row, for catalogues whose square is too large."""
        if isinstance(self.weights, DenseWeights):
            return ItemItem(self.weights.pruned(k), self.half_life, self.base)
        return self

    def to_arrays(self) -> tuple[Arrays, Header]:
        """See `ServingModel`."""
        arrays = self.weights.to_arrays()
        if self.base is not None:
            arrays["base"] = self.base
        return arrays, {"kind": self.kind, "half_life": self.half_life}

    @classmethod
    def from_arrays(cls, arrays: Arrays, header: Header) -> ItemItem:
        """See `ServingModel`."""
        from fedrec.ranking.graph import GraphWeights

        base = arrays.get("base")
        weights: Weights
        if "weights.indptr" in arrays:
            scale = arrays.get("weights.row_scale")
            edges = SparseWeights(
                np.asarray(arrays["weights.indptr"], dtype=np.int64),
                np.asarray(arrays["weights.index"], dtype=np.int32),
                np.asarray(arrays["weights.values"]),
                None if scale is None else np.asarray(scale, dtype=np.float32),
            )
            of_graph = "vectors" in arrays or "vectors.codes" in arrays
            weights = GraphWeights.from_arrays(edges, arrays) if of_graph else edges
        else:
            weights = DenseWeights(read_table(arrays, "weights"))
        half_life = header["half_life"]
        return cls(
            weights,
            None if half_life is None else float(half_life),
            None if base is None else np.asarray(base, dtype=np.float32),
        )
