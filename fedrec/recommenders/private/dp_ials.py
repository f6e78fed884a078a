"""Alternating least squares made for noise (DPALS): item rows are solved from bounded, noised sufficient statistics.

Chien, Jain, Krichene, Rendle, Song, Thakurta and Zhang 2021, "Private alternating least squares" (ICML): user vectors
stay on the device and cost nothing; what is released are, per item, Σ w u uᵀ and Σ w u, and Σ u uᵀ over all users.
The weights w_ui ∝ count_i^(-μ), from a noisy histogram, give rare items a larger share of a user's fixed norm
(Krichene, Jain, Song, Sundararajan, Thakurta and Zhang 2023, "Multi-task differential privacy under distribution
skew", ICML). Round 1 is that histogram; every further round is one sweep: users, then items.

One user's three blocks have norm at most 1 together, by construction: |u| <= 1, Σ_i w_ui² = 1, and the blocks are
multiplied by a, b, c with a² + b² + c² = 1. With everything divided by that again, the items are solved from

    (A_i + α G + ρ I) q_i = b_i,    A_i, G projected on the positive semidefinite matrices.

Letters: U users, I items, k selected items, d embedding size, N interactions of a batch, T sweeps.
Out of scope: what adds the noise and what it guarantees (`fedrec.privacy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrec.core.contributions import UNIT, distinct, equal_weights, newest, restrict, selected_state, spread
from fedrec.core.errors import ConfigError
from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, key, normal, user_keys
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import BlockSpec, Dense, Layout, RowGram, Rows, State, Updates, UpdateSum
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.popular import Selected
from fedrec.ranking.tables import FloatTable
from fedrec.recommenders.profiles import recency
from fedrec.recommenders.registry import recommender

Floats = NDArray[np.float64]


class DpIalsConfig(RecommenderConfig):
    """Configuration of DPALS.

    Attributes:
        embedding_size: d; small, because the noise grows with it.
        top_items: k, how many items (by the histogram of round 1) get a vector; the others follow by popularity.
        histogram_items: newest items of a user that count in the histogram.
        history_items: newest items of a user (among the selected) that count in a sweep.
        count_share: share of the privacy budget (of μ², which is what Gaussian releases add up) spent on round 1;
            the sweeps share the rest equally.
        count_exponent: μ, items are weighted by count^(-μ) within a user.
        gram_share, user_gram_share: share of a user's squared norm that goes into the items' Gramians and into the
            Gramian of all users; the rest goes into the right-hand sides.
        unobserved_weight: α.
        user_reg: λ of a user's ridge regression, times the number of own items plus α k.
        item_reg: ρ, plus `noise_reg` times the edge of the noise on A_i, 2 σ sqrt(d).
        noise_reg: see `item_reg`.
        user_bound: Γ, the norm at which user vectors are clipped.
        training_half_life: recency when a user vector is solved in training, in interactions; None: none.
        scoring_half_life: recency when a user vector is solved to recommend, in interactions; None: none.
    """

    kind: str = "dp_ials"
    embedding_size: int = Field(default=16, ge=1)
    top_items: int = Field(default=600, ge=2)
    histogram_items: int = Field(default=50, ge=1)
    history_items: int = Field(default=60, ge=1)
    count_share: float = Field(default=0.1, gt=0, lt=1)
    count_exponent: float = Field(default=1 / 3, ge=0, le=1)
    gram_share: float = Field(default=0.02, gt=0, lt=1)
    user_gram_share: float = Field(default=0.01, gt=0, lt=1)
    unobserved_weight: float = Field(default=0.3, gt=0)
    user_reg: float = Field(default=0.001, ge=0)
    item_reg: float = Field(default=10.0, gt=0)
    noise_reg: float = Field(default=2.0, ge=0)
    user_bound: float = Field(default=0.2, gt=0)
    training_half_life: float | None = Field(default=None, gt=0)
    scoring_half_life: float | None = Field(default=3.0, gt=0)

    @model_validator(mode="after")
    def _something_is_left_for_the_right_hand_sides(self) -> DpIalsConfig:
        if self.gram_share + self.user_gram_share > 0.99:
            raise ValueError(
                f"gram_share={self.gram_share} and user_gram_share={self.user_gram_share} add up to more than 0.99: "
                "lower one of them, the right-hand sides need the rest"
            )
        return self


@recommender(DpIalsConfig)
class DpIals(Recommender):
    """Alternating least squares whose sums are bounded per user and solved with knowledge of their noise."""

    config: DpIalsConfig
    round_is_sweep: ClassVar[bool] = True
    chunk_users: ClassVar[int] = 4096
    small: ClassVar[Mapping[str, Any]] = {"top_items": 12, "embedding_size": 4}

    def __init__(self, config: DpIalsConfig) -> None:
        self.config = config

    def noise_schedule(self, rounds: int) -> tuple[float, ...]:
        """`count_share` of the budget for the histogram, the rest in equal parts for the sweeps.

        Raises:
            ConfigError: there is no round left for a sweep.
        """
        if rounds < 2:
            raise ConfigError(
                f"dp_ials with rounds={rounds}: expected 2 or more (one histogram, then sweeps)"
            )
        share = self.config.count_share
        return (share**-0.5, *(((1.0 - share) / (rounds - 1)) ** -0.5 for _ in range(rounds - 1)))

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        if round_ == 1:
            return Layout({"count": BlockSpec((n_items,))})
        k, d = min(self.config.top_items, n_items), self.config.embedding_size
        return Layout(
            {
                "item_gram": BlockSpec((k, d, d), symmetric=True),
                "item_sum": BlockSpec((k, d)),
                "user_gram": BlockSpec((d, d), symmetric=True),
            }
        )

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        k, d = min(self.config.top_items, n_items), self.config.embedding_size
        table = normal(user_keys(key(seed, Purpose.INIT_SHARED), np.arange(k)), d) / np.sqrt(d)
        return {"item_table": table.astype(np.float32)}

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        if key.round == 1:
            own = newest(distinct(batch), self.config.histogram_items)
            return Updates({"count": Rows(own.indptr, own.item, equal_weights(own))}, len(batch)), {}
        own = newest(_restricted(shared, distinct(batch)), self.config.history_items)
        with one_blas_thread():
            users = self._solve_users(shared, own, recency(own, self.config.training_half_life))
        return Updates(self._blocks(own, self._bounded(users), self._weights(shared, own)), len(batch)), {}

    def _blocks(self, own: UserBatch, users: Floats, weight: Floats) -> dict[str, RowGram | Rows | Dense]:
        a, b, c = self._shares()
        gram = users[:, :, None] * users[:, None, :]
        return {
            "item_gram": RowGram(own.indptr, own.item, a * weight, users),
            "item_sum": Rows(own.indptr, own.item, b * weight[:, None] * users[own.row]),
            "user_gram": Dense(c * gram, symmetric=True),
        }

    def _shares(self) -> tuple[float, float, float]:
        """a, b, c: what the blocks are multiplied by; their squares add up to 1."""
        c = self.config
        rest = 1.0 - c.gram_share - c.user_gram_share
        return c.gram_share**0.5, rest**0.5, c.user_gram_share**0.5

    def _weights(self, shared: State, own: UserBatch) -> Floats:
        """[N] w_ui ∝ count_i^(-μ), Σ_i w_ui² = 1 for every user."""
        count = np.maximum(shared["count"][shared["selected"]].astype(np.float64), 1.0)
        raw = count[own.item] ** -self.config.count_exponent
        norms = np.bincount(own.row, np.square(raw), minlength=len(own)) ** 0.5
        return np.asarray(raw / norms[own.row])

    def _bounded(self, users: Floats) -> Floats:
        """[U, d] vectors clipped at Γ and divided by it, so that none is longer than 1."""
        norms = np.linalg.norm(users, axis=1)
        return np.asarray(UNIT * users / np.maximum(norms, self.config.user_bound)[:, None])

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        if "count" in total.blocks:
            return {**shared, **selected_state(total.blocks["count"], self.config.top_items)}, server
        return {**shared, "item_table": self._solve_items(total)}, server

    def _solve_items(self, total: UpdateSum) -> NDArray[np.float32]:
        """[k, d] rows for user vectors of at most norm Γ."""
        c, (a, b, g) = self.config, self._shares()
        edge = 2.0 * total.noise_std / a * c.embedding_size**0.5
        with one_blas_thread():
            left = semidefinite(total.blocks["item_gram"] / a)
            left += c.unobserved_weight * semidefinite(total.blocks["user_gram"] / g)
            left += (c.item_reg + c.noise_reg * edge) * np.eye(c.embedding_size)
            rows = np.linalg.solve(left, total.blocks["item_sum"][:, :, None] / b)[:, :, 0]
        return np.asarray(rows / c.user_bound, dtype=np.float32)

    def _solve_users(self, shared: State, own: UserBatch, weight: Floats) -> Floats:
        """[U, d] ridge regressions on the own (selected) items; zero for an empty history."""
        c, table = self.config, shared["item_table"].astype(np.float64)
        everything = c.unobserved_weight * table.T @ table
        users = np.zeros((len(own), c.embedding_size))
        for u in range(len(own)):
            mine = slice(own.indptr[u], own.indptr[u + 1])
            if mine.stop > mine.start:
                rows = table[own.item[mine]]
                left = everything + rows.T @ (rows * weight[mine, None])
                ridge = c.user_reg * (weight[mine].sum() + c.unobserved_weight * len(table))
                left[np.diag_indices_from(left)] += max(ridge, 1e-9)
                users[u] = np.linalg.solve(left, rows.T @ weight[mine])
        return users

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        own = _restricted(shared, batch)
        with one_blas_thread():
            users = self._solve_users(shared, own, recency(own, self.config.scoring_half_life))
        return {"user_vector": users.astype(np.float32)}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        users = self.fold_in(shared, batch)["user_vector"].astype(np.float64)
        scores = users @ shared["item_table"].T
        scores[~users.any(axis=1)] = np.arange(scores.shape[1], 0, -1)
        return spread(scores, shared["count"], shared["selected"])

    def serving(self, shared: State) -> Selected:  # noqa: D102
        c = self.config
        ridge = Ridge(c.unobserved_weight, c.user_reg, 1.0, c.scoring_half_life, weighted_count=True)
        return Selected(Factors(FloatTable(shared["item_table"]), ridge), shared["selected"], shared["count"])


def semidefinite(matrices: NDArray[np.floating]) -> Floats:
    """[..., d, d] the nearest positive semidefinite matrices (Frobenius norm): negative eigenvalues become 0."""
    values, vectors = np.linalg.eigh(matrices)
    return np.asarray((vectors * np.maximum(values, 0.0)[..., None, :]) @ np.swapaxes(vectors, -1, -2))


def _restricted(shared: State, batch: UserBatch) -> UserBatch:
    return restrict(batch, shared["selected"], len(shared["count"]))
