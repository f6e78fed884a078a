"""What private item-item models have in common: two sums of bounded contributions, denoised before use.

A Gram matrix of all I items drowns in noise that has to hide a whole user, so everything here makes the signal
larger. Round 1 is a histogram of the newest items; its top decide which k items round 2 is about. Round 2 is a Gram
matrix of what users had *close together in time*,

    A_u = c_u Σ_(s,t) 2^(-|s - t| / h) e_i(s) e_i(t)ᵀ,    c_u such that the sent part of A_u has norm 1,

which spends a user's fixed norm on the few pairs that say most instead of on all n² of them, and less of it on the
diagonal, which says little. The server knows the noise it added: eigenvalues that noise alone would reach are cut and
the others shrunk as is optimal under Gaussian noise (Gavish and Donoho 2017, "Optimal shrinkage of singular values",
IEEE Trans. Inf. Theory 63, Frobenius loss, square case: y -> sqrt(y² - 4 k σ²)). Final classes: private EASE, private
item graph.

Letters: U users, I items, k selected items, N interactions of a batch, h half-life, σ noise on each value of the sum.
Out of scope: what adds the noise and what it guarantees (`fedrec.privacy`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.contributions import distinct, equal_weights, newest, restrict, selected_state, spread
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.kernels import near_pairs_into
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.updates import BlockSpec, Layout, Rows, State, Updates, UpdateSum
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.popular import Selected
from fedrec.ranking.weights import Weights
from fedrec.recommenders.profiles import matrix, recency

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]


class PrivateGramConfig(RecommenderConfig):
    """How the two sums are made, denoised and asked.

    Attributes:
        top_items: k, how many items (by the histogram of round 1) the item-item matrix is about; fewer for less
            budget or fewer users.
        histogram_items: newest items of a user that count in the histogram.
        history_items: newest items of a user (among the selected) that count in the Gram matrix.
        pair_half_life: h, in interactions: how fast the weight of a pair falls with the distance of its items in the
            history; None: it does not.
        diagonal_weight: what the pair of an item with itself weighs.
        count_share: share of the privacy budget (of μ², which is what Gaussian releases add up) spent on round 1.
        cut: what counts as noise, in multiples of its edge 2 σ sqrt(k): eigenvalues below are set to zero, others are
            shrunk accordingly. A little less than 1 ranks a little better than what is optimal for the matrix itself.
        popularity_weight: what the most popular item's count adds to its score, other items' in proportion; the
            counts of round 1 are paid for already.
        scoring_half_life: recency when scoring, in interactions; None: none. It happens on the device and is free.
    """

    top_items: int = Field(default=600, ge=2)
    histogram_items: int = Field(default=50, ge=1)
    history_items: int = Field(default=400, ge=1)
    pair_half_life: float | None = Field(default=5.0, gt=0)
    diagonal_weight: float = Field(default=0.5, gt=0, le=1)
    count_share: float = Field(default=0.1, gt=0, lt=1)
    cut: float = Field(default=0.9, ge=0)
    popularity_weight: float = Field(default=0.0, ge=0)
    scoring_half_life: float | None = Field(default=2.0, gt=0)


#: A pair at this many half-lives apart weighs 2^-6 and is left out.
WINDOW_HALF_LIVES = 6


@dataclass(frozen=True)
class NearPairs:
    """A block A_u of norm 1 per user; items must be distinct within a user.

    Attributes:
        indptr, item: histories, items numbered 0..k-1.
        half_life: h, or None.
        diagonal: weight of the pair of an item with itself; that of two neighbours is 2^(-1 / h).
    """

    indptr: IntArray
    item: IntArray
    half_life: float | None
    diagonal: float

    def squared_norms(self) -> Floats:
        """[U] 1, or 0 for an empty history."""
        return np.asarray((np.diff(self.indptr) > 0).astype(np.float64))

    def add_into(self, total: Floats, scale: Floats) -> None:
        """Add every user's block times `scale` [U] to `total` [k, k]."""
        factor = scale / np.sqrt(np.maximum(self._raw_squares(), 1e-300))
        near_pairs_into(total, self.indptr, self.item, self._kernel(), factor)

    def _kernel(self) -> Floats:
        """Weight of a pair by its distance 0, 1, ..."""
        size = int(np.diff(self.indptr).max(initial=1))
        if self.half_life is None:
            kernel = np.ones(size)
        else:
            size = min(size, int(np.ceil(WINDOW_HALF_LIVES * self.half_life)) + 1)
            kernel = np.exp2(-np.arange(size) / self.half_life)
        kernel[0] = self.diagonal
        return kernel

    def _raw_squares(self) -> Floats:
        """[U] squared norm of the upper triangle before scaling: (n - d) pairs at each distance d."""
        square = np.square(self._kernel())
        cumulative = np.concatenate([[0.0], np.cumsum(square)])
        moment = np.concatenate([[0.0], np.cumsum(square * np.arange(len(square)))])
        n = np.diff(self.indptr)
        upto = np.minimum(n, len(square))
        return np.asarray(n * cumulative[upto] - moment[upto])


class PrivateGram(Recommender):
    """A recommender that is a function of a noisy Gram matrix; subclasses give `solve` and `relevance`."""

    fixed_rounds: ClassVar[int | None] = 2
    chunk_users: ClassVar[int] = 8192

    def __init__(self, config: PrivateGramConfig) -> None:
        self._statistic = config

    @abstractmethod
    def solve(self, gram: Floats, noise_std: float) -> State:
        """Shared state of a Gram matrix [k, k] with noise of the given standard deviation."""

    @abstractmethod
    def relevance(self, shared: State, asked: csr_array) -> NDArray[np.floating]:
        """[U, k] scores of the selected items for profiles [U, k]."""

    def noise_schedule(self, rounds: int) -> tuple[float, ...]:
        """The histogram gets `count_share` of the budget: noise falls with the square root of the share."""
        share = self._statistic.count_share
        return (share**-0.5, (1.0 - share) ** -0.5)

    def layout(self, n_items: int, round_: int = 1) -> Layout:
        k = min(self._statistic.top_items, n_items)
        if round_ == 1:
            return Layout({"count": BlockSpec((n_items,))})
        return Layout({"gram": BlockSpec((k, k), symmetric=True)})

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:
        return np.zeros(0, dtype=np.int64)

    def compute_updates(
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        if key.round == 1:
            own = newest(distinct(batch), self._statistic.histogram_items)
            return Updates({"count": Rows(own.indptr, own.item, equal_weights(own))}, len(batch)), {}
        selected, n_items = shared["selected"], len(shared["count"])
        own = newest(restrict(distinct(batch), selected, n_items), self._statistic.history_items)
        pairs = NearPairs(
            own.indptr, own.item, self._statistic.pair_half_life, self._statistic.diagonal_weight
        )
        return Updates({"gram": pairs}, len(batch)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        if "count" in total.blocks:
            return selected_state(total.blocks["count"], self._statistic.top_items), server
        return shared | self.solve(total.blocks["gram"], total.noise_std), server

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:
        count, selected = shared["count"], shared["selected"]
        own = restrict(batch, selected, len(count))
        asked = matrix(own, recency(own, self._statistic.scoring_half_life), len(selected))
        scores = np.asarray(self.relevance(shared, asked), dtype=np.float64)
        popular = np.maximum(count[selected], 0.0)
        scores += self._statistic.popularity_weight * popular / max(float(popular.max(initial=0.0)), 1e-9)
        # Who has none of the selected items is shown what is popular.
        scores[own.counts == 0] = np.arange(len(selected), 0, -1)
        return spread(scores, count, selected)

    @abstractmethod
    def serving_weights(self, shared: State) -> Weights:
        """Weights between the selected items."""

    def serving(self, shared: State) -> Selected:
        popular = np.maximum(shared["count"][shared["selected"]], 0.0)
        base = self._statistic.popularity_weight * popular / max(float(popular.max(initial=0.0)), 1e-9)
        inner = ItemItem(
            self.serving_weights(shared),
            self._statistic.scoring_half_life,
            base.astype(np.float32) if base.any() else None,
        )
        return Selected(inner, shared["selected"], shared["count"])


def denoised(eigenvalues: Floats, noise_std: float, cut: float) -> Floats:
    """Eigenvalues y of a k x k matrix without what noise added: sqrt(y² - e²), e = cut * 2 σ sqrt(k); 0 below e."""
    edge = cut * 2.0 * noise_std * np.sqrt(len(eigenvalues))
    shrunk = np.sqrt(np.maximum(np.square(eigenvalues) - edge**2, 0.0))
    return np.where(eigenvalues > 0.0, shrunk, 0.0)
