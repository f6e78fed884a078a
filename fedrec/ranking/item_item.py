"""Item-item models that serve: score_j = base_j + Σ_h r_h W_hj over the entries h of the history.

Serves EASE, item-kNN, the item graph and private siblings: a row sum is all it takes, so the last click counts at
once. Small catalogues keep W dense, large ones the strongest weights of each row. Out of scope: training.

Letters: I items, L entries of a history, k weights kept per row.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking.folding import recency
from fedrec.ranking.graph import GraphWeights
from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Explanation, Header, History, Scores, ServingModel, User
from fedrec.ranking.tables import read_table
from fedrec.ranking.weights import DenseWeights, SparseWeights, Weights


class ItemItem(ServingModel):
    """Weights between items.

    Args:
        weights: W.
        half_life: recency of an entry, in entries; None: none.
        base: [I] what items have for everyone; None: nothing.
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

    def fold_in(self, history: History) -> User:
        """See `ServingModel`; [L] the weight r_h of each entry is all there is to know."""
        if len(history) and history.item.max() >= self.n_items:
            raise DataError(f"a history with item {history.item.max()}: the model has {self.n_items}")
        return User(history, recency(len(history), self.half_life) * history.weight)

    def scores(self, user: User) -> Scores:
        """See `ServingModel`."""
        scores = self.weights.weighted_sum(user.history.item, user.state)
        if self.base is not None:
            scores += self.base
        return scores

    def explain(self, user: User, item: int) -> Explanation:
        """See `ServingModel`."""
        base = 0.0 if self.base is None else float(self.base[item])
        contributions = user.state * self.weights.column(user.history.item, item)
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
