"""A graph recommender whose user-item edges never leave the device.

The graph is between items: what users have in common, summed over users. With G = Σ_u x_u x_uᵀ of the users'
profiles its adjacency is A = D^-1/2 (G - diag G) D^-1/2, D the sums of the rows; its largest eigenvalue is 1. Then

    e_i = 1/(L+1) Σ_l (A^l V)_i             V [I, d]: the d largest eigenvectors
    score_j = e_j · Σ_h r_h e_h + w Σ_h r_h A_hj [h among the k nearest of j]

over a history h with weights r. The first line is the propagation of LightGCN (He et al. 2020, SIGIR, equation 8: the
mean over layers, no transformation) from embeddings that need no training: the low-pass filter of the graph, and
filter and linear neighbourhood together are GF-CF (Shen et al. 2021, "How powerful is graph convolution for
recommendation?", CIKM). Both work on the user-item graph, on a server that has it. Two steps on that graph are one on
this one, and a user's own edges are needed on the device alone, where the user vector Σ_h r_h e_h is made. One round.

Letters: U users, I items, d embedding size, k neighbours, L layers, h an item of the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RecommenderConfig, Scores
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import State
from fedrec.ranking.item_item import ItemItem
from fedrec.recommenders.closed_form._gram import GramConfig, GramRecommender
from fedrec.recommenders.profiles import neighbour_matrix
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import graph_weights

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]

#: Below this many items per eigenvector all of them are computed at once.
FEW = 8


class GraphConfig(RecommenderConfig):
    """How a graph is read.

    Attributes:
        embedding_size: d; more see finer differences of taste.
        layers: L, steps of propagation; more weigh the coarse structure more.
        neighbours: k, edges kept for each item.
        edge_weight: w, what a direct neighbour counts beside the embeddings.
    """

    embedding_size: int = Field(default=64, ge=1)
    layers: int = Field(default=2, ge=0)
    neighbours: int = Field(default=100, ge=1)
    edge_weight: float = Field(default=2.0, ge=0)


class ItemGraphConfig(GramConfig, GraphConfig):
    """Configuration of the graph recommender; see `GramConfig` for the profiles, `GraphConfig` for the graph."""

    kind: str = "item_graph"
    activity_exponent: float = Field(default=0.4, ge=0, le=1)


@recommender(ItemGraphConfig)
class ItemGraph(GramRecommender):
    """Propagation on an item-item graph from a sum of outer products."""

    config: ItemGraphConfig
    small: ClassVar[Mapping[str, Any]] = {"neighbours": 8, "embedding_size": 5}

    def __init__(self, config: ItemGraphConfig) -> None:
        super().__init__(config)
        self.config = config

    def solve(self, gram: Floats) -> State:
        """See `graph_state`."""
        return graph_state(adjacency(gram), self.config)

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        return graph_scores(shared, self.asked(batch, len(shared["vector"])))

    def serving(self, shared: State) -> ItemItem:  # noqa: D102
        return ItemItem(graph_weights(shared), self.config.scoring_half_life)


def adjacency(gram: Floats) -> Floats:
    """[I, I] A of a Gram matrix: no loops, no negative edges, rows and columns scaled by their degrees."""
    edges = np.maximum(gram, 0.0)
    np.fill_diagonal(edges, 0.0)
    degree = edges.sum(axis=1)
    scale = np.where(degree > 0.0, np.maximum(degree, np.finfo(np.float64).tiny) ** -0.5, 0.0)
    edges *= scale[:, None]
    edges *= scale
    return edges


def graph_state(graph: Floats, config: GraphConfig) -> State:
    """What is broadcast of an adjacency [I, I].

    vector [I, d] after propagation; neighbour [I, k] and edge [I, k]: row j holds the items nearest to j, rising, and
    what each of them counts.
    """
    n_items = len(graph)
    k = min(config.neighbours, max(n_items - 1, 1))
    nearest = np.sort(np.argsort(-graph, axis=1, kind="stable")[:, :k], axis=1)
    edge = config.edge_weight * np.take_along_axis(graph, nearest, axis=1)
    values, vectors = largest(graph, min(config.embedding_size, n_items))
    layers = np.mean([values**layer for layer in range(config.layers + 1)], axis=0)
    return {
        "vector": (vectors * layers).astype(np.float32),
        "neighbour": nearest.astype(np.int32),
        "edge": edge.astype(np.float32),
    }


def largest(matrix: Floats, d: int) -> tuple[Floats, Floats]:
    """The d largest eigenvalues [d], falling, of a symmetric matrix [I, I] and their vectors [I, d]."""
    with one_blas_thread():
        values, vectors = _lanczos(matrix, d) if len(matrix) >= FEW * d else np.linalg.eigh(matrix)
    order = np.argsort(-values, kind="stable")[:d]
    return values[order], vectors[:, order]


def _lanczos(matrix: Floats, d: int) -> tuple[Floats, Floats]:
    from scipy.sparse.linalg import ArpackError, eigsh

    # A fixed start, so that equal sums give equal models; not of equal entries, which may be an eigenvector.
    start = np.random.default_rng(0).uniform(0.5, 1.5, len(matrix))
    try:
        values, vectors = eigsh(matrix, d, which="LA", v0=start)
    except ArpackError:  # It has no answer for degenerate ones, such as a graph without edges.
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def graph_scores(shared: State, asked: csr_array) -> Scores:
    """[U, I] for profiles [U, I]; the two terms of the score."""
    vector, edges = shared["vector"], neighbour_matrix(shared["neighbour"], shared["edge"])
    return np.asarray((asked @ vector) @ vector.T + (asked @ edges.T).toarray(), dtype=np.float32)
