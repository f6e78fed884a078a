"""The graph recommender whose item-item graph hides every user.

The sums are those of `private_gram`: a noisy histogram chooses k items, a noisy sum of what users had
close together in time is denoised. Everything after is `closed_form.item_graph`, which sees nothing but that sum:
what noise alone would reach is gone before the graph is made, so embeddings and edges are made of signal.

Letters: U users, k selected items.
Out of scope: what adds the noise and what it guarantees (`fedrec.privacy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import State
from fedrec.ranking.graph import GraphWeights
from fedrec.recommenders.closed_form.item_graph import GraphConfig, adjacency, graph_scores, graph_state
from fedrec.recommenders.private._private_gram import Floats, PrivateGram, PrivateGramConfig, denoised
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import graph_weights

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class DpItemGraphConfig(PrivateGramConfig, GraphConfig):
    """Configuration of the private graph; see `PrivateGramConfig` for the sums, `GraphConfig` for the graph."""

    kind: str = "dp_item_graph"


@recommender(DpItemGraphConfig)
class DpItemGraph(PrivateGram):
    """Propagation on an item-item graph from two noisy sums."""

    config: DpItemGraphConfig
    small: ClassVar[Mapping[str, Any]] = {"top_items": 12, "neighbours": 4, "embedding_size": 4}

    def __init__(self, config: DpItemGraphConfig) -> None:
        super().__init__(config)
        self.config = config

    def solve(self, gram: Floats, noise_std: float) -> State:
        """See `fedrec.recommenders.closed_form.item_graph.graph_state`, of the selected items."""
        with one_blas_thread():
            values, vectors = np.linalg.eigh(gram)
            clean = (vectors * denoised(values, noise_std, self.config.cut)) @ vectors.T
        return graph_state(adjacency(clean), self.config)

    def relevance(self, shared: State, asked: csr_array) -> NDArray[np.floating]:  # noqa: D102
        return graph_scores(shared, asked)

    def serving_weights(self, shared: State) -> GraphWeights:  # noqa: D102
        return graph_weights(shared)
