"""Weights between items that a graph implies: W_hj = e_h · e_j + edge_hj, never written out.

A user's vector Σ_h r_h e_h and the edges of the own history are all that a score takes, and both are made where the
history is. Out of scope: how the graph comes about (`fedrec.recommenders.closed_form.item_graph`).

Letters: I items, L entries of a history, d embedding size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Scores
from fedrec.ranking.tables import Table, read_table
from fedrec.ranking.weights import SparseWeights


class GraphWeights:
    """See `fedrec.ranking.weights.Weights`.

    Args:
        edges: of the items to the items that they speak for.
        vectors: [I, d] e.
    """

    def __init__(self, edges: SparseWeights, vectors: Table) -> None:
        if vectors.shape[0] != edges.n_items:
            raise ValueError(f"vectors of {vectors.shape[0]} items with edges of {edges.n_items}")
        self.edges = edges
        self.vectors = vectors

    @property
    def n_items(self) -> int:
        """I."""
        return self.edges.n_items

    def weighted_sum(self, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> Scores:
        """[I] Σ_h weight_h W_h, by way of the user's vector."""
        user = weight @ self.vectors.rows(rows)
        return np.asarray(self.vectors.dot(user) + self.edges.weighted_sum(rows, weight), dtype=np.float32)

    def column(self, rows: NDArray[np.int64], item: int) -> NDArray[np.float64]:
        """[L] W_h,item."""
        near = self.vectors.rows(rows).astype(np.float64) @ self.vectors.rows(np.array([item]))[0]
        return np.asarray(near + self.edges.column(rows, item))

    def row(self, item: int) -> Scores:
        """[I] one row."""
        return self.weighted_sum(np.array([item]), np.ones(1))

    def features(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, n] rows at the columns of these items."""
        vectors = self.vectors.rows(items)
        return vectors @ vectors.T + self.edges.features(items)

    def quantised(self) -> GraphWeights:
        """The same in 8 bits."""
        return GraphWeights(self.edges.quantised(), self.vectors.quantised())

    def to_arrays(self) -> Arrays:
        """For a file."""
        return self.edges.to_arrays() | self.vectors.to_arrays("vectors")

    @classmethod
    def from_arrays(cls, edges: SparseWeights, arrays: Arrays) -> GraphWeights:
        """The weights of `to_arrays`, whose edges are read already."""
        return cls(edges, read_table(arrays, "vectors"))
