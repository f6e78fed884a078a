"""Serving models of what several recommenders learn: neighbours, graphs, networks over a history.

Letters: I items, k neighbours, d embedding size.
Out of scope: the serving models themselves (`fedrec.ranking`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.updates import State
from fedrec.neural.sequence import SequenceRecommender
from fedrec.ranking.graph import GraphWeights
from fedrec.ranking.network import Network
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import SparseWeights


def neighbour_weights(neighbour: NDArray[np.int32], strength: NDArray[np.float32]) -> SparseWeights:
    """Weights between items from the neighbours [I, k] of each scored item and their strengths [I, k].

    Training keeps, per scored item, the items that speak for it; serving looks from the history's side.
    """
    n_items, k = neighbour.shape
    scored = np.repeat(np.arange(n_items, dtype=np.int32), k)
    speaks = neighbour.reshape(-1).astype(np.int64)
    order = np.lexsort((scored, speaks))
    indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(speaks, minlength=n_items), out=indptr[1:])
    return SparseWeights(indptr, scored[order], strength.reshape(-1).astype(np.float32)[order])


def graph_weights(shared: State) -> GraphWeights:
    """Weights between items of a graph's state (`vector`, `neighbour`, `edge`)."""
    edges = neighbour_weights(shared["neighbour"], shared["edge"])
    return GraphWeights(edges, FloatTable(shared["vector"]))


def sequence_network(
    model: SequenceRecommender,
    shared: State,
    encoder: str,
    settings: Mapping[str, Any],
    *,
    items: NDArray[np.float32] | None = None,
    without: tuple[str, ...] = (),
) -> Network:
    """A network that reads and scores one table.

    Args:
        model: whose encoder's parameters the network has.
        shared: its state.
        encoder: name of the network in `fedrec.ranking`.
        settings: plain values for it.
        items: [I, d] the table; None: `item_table` of the state.
        without: parameters of the encoder that the network does not read.
    """
    weights = {name: shared[name] for name in model.encoder_parameters() if name not in without}
    table = FloatTable(shared["item_table"] if items is None else items)
    lengths = {"max_length": model.settings.max_length}
    return Network(encoder, dict(settings) | lengths, weights, table, shared.get("item_bias"))
