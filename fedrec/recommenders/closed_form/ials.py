"""iALS: implicit alternating least squares, the item side solved from summed sufficient statistics.

Hu, Koren and Volinsky 2008 (ICDM) with the loss and the frequency-scaled regularisation of Rendle, Krichene,
Zhang and Koren 2022, "Revisiting the performance of iALS on item recommendation benchmarks" (RecSys),
equations 1-4:

    Σ_(u,i)∈S w_ui (p_u·q_i - 1)² + α Σ_u Σ_i (p_u·q_i)²
        + λ ( Σ_u (n_u + α I)^ν |p_u|² + Σ_i (n_i + α U)^ν |q_i|² )

with w_ui = 1 unless a training half-life is set.

A user solves p_u on the device from the rows of the own items and the d x d Gramian of all items, and sends,
per item, {w p_u p_uᵀ, w p_u, 1} and p_u p_uᵀ once. The server solves each row q_i. A round is one full sweep, the
federated model is the centralised one, and no personal state is kept: p_u is a function of the history.

Letters: U users, I items, d embedding size, N interactions of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.randomness import Purpose, key, normal, user_keys
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import Block, BlockSpec, Dense, Layout, RowGram, Rows, State, Updates, UpdateSum
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.tables import FloatTable
from fedrec.recommenders.profiles import merged, recency
from fedrec.recommenders.registry import recommender


class IalsConfig(RecommenderConfig):
    """Configuration of iALS.

    Attributes:
        embedding_size: d.
        unobserved_weight: α.
        reg: λ.
        reg_exponent: ν.
        init_scale: standard deviation of an item vector's norm at the start.
        training_half_life: recency weight w_ui in training, in interactions; None: w_ui = 1.
        scoring_half_life: recency weight when a user vector is solved to recommend; None: 1.
    """

    kind: str = "ials"
    embedding_size: int = Field(default=64, ge=1)
    unobserved_weight: float = Field(default=0.3, gt=0)
    reg: float = Field(default=0.01, ge=0)
    reg_exponent: float = Field(default=1.0, ge=0, le=2)
    init_scale: float = Field(default=0.1, gt=0)
    training_half_life: float | None = Field(default=None, gt=0)
    scoring_half_life: float | None = Field(default=None, gt=0)


@recommender(IalsConfig)
class Ials(Recommender):
    """Alternating least squares whose user half never leaves the device."""

    config: IalsConfig
    round_is_sweep: ClassVar[bool] = True
    chunk_users: ClassVar[int] = 4096
    small: ClassVar[Mapping[str, Any]] = {"embedding_size": 4}

    def __init__(self, config: IalsConfig) -> None:
        self.config = config

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        d = self.config.embedding_size
        return Layout(
            {
                "item_gram": BlockSpec((n_items, d, d), symmetric=True),
                "item_sum": BlockSpec((n_items, d)),
                "item_count": BlockSpec((n_items,)),
                "user_gram": BlockSpec((d, d), symmetric=True),
            }
        )

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        d = self.config.embedding_size
        keys = user_keys(key(seed, Purpose.INIT_SHARED), np.arange(n_items))
        return _with_gramian(normal(keys, d) * (self.config.init_scale / np.sqrt(d)))

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:  # noqa: D102
        return np.unique(batch.item)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        weight = recency(batch, self.config.training_half_life)
        users = self._solve_users(shared, batch, weight)
        indptr, item, strength = merged(batch, weight)
        owner = np.repeat(np.arange(len(batch)), np.diff(indptr))
        blocks: dict[str, Block] = {
            "item_gram": RowGram(indptr, item, strength, users),
            "item_sum": Rows(indptr, item, users[owner] * strength[:, None]),
            "item_count": Rows(*merged(batch, np.ones(len(batch.item)))),
            "user_gram": Dense(users[:, :, None] * users[:, None, :], symmetric=True),
        }
        predicted = np.einsum("nd,nd->n", users[batch.row], shared["item_table"][batch.item])
        loss = np.bincount(batch.row, np.square(1.0 - predicted), minlength=len(batch)).astype(np.float64)
        return Updates(blocks, len(batch), loss, batch.counts.astype(np.float64)), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        c, b = self.config, total.blocks
        diagonal = c.reg * (b["item_count"] + c.unobserved_weight * total.users) ** c.reg_exponent
        left = b["item_gram"] + c.unobserved_weight * b["user_gram"]
        left += np.maximum(diagonal, 1e-9)[:, None, None] * np.eye(c.embedding_size)
        with one_blas_thread():
            item_table = np.linalg.solve(left, b["item_sum"][:, :, None])[:, :, 0]
        return _with_gramian(np.asarray(item_table, np.float64)), server

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        weight = recency(batch, self.config.scoring_half_life)
        with one_blas_thread():
            return {"user_vector": self._solve_users(shared, batch, weight).astype(np.float32)}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        users = self.fold_in(shared, batch)["user_vector"]
        return np.asarray(users @ shared["item_table"].T, dtype=np.float32)

    def serving(self, shared: State) -> Factors:  # noqa: D102
        c = self.config
        ridge = Ridge(c.unobserved_weight, c.reg, c.reg_exponent, c.scoring_half_life)
        return Factors(FloatTable(shared["item_table"]), ridge)

    def fit(  # noqa: D102
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        batch = train.batch(np.arange(train.n_users))
        weight = recency(batch, self.config.training_half_life)
        by_item = np.argsort(batch.item, kind="stable")
        columns = np.split(by_item, np.cumsum(train.item_counts)[:-1])
        shared = self.init_shared(train.n_items, seed)
        for _ in range(rounds):
            shared = self._sweep(shared, batch, weight, columns)
        return shared, {}

    def _sweep(
        self, shared: State, batch: UserBatch, weight: NDArray[np.float64], columns: list[IntArray]
    ) -> State:
        """One centralised round: all users, then all items; columns: entries of the batch by item."""
        with one_blas_thread():
            users = self._solve_users(shared, batch, weight)
            alpha_gram = self.config.unobserved_weight * users.T @ users
            item_table = np.zeros((len(columns), self.config.embedding_size))
            for item, entries in enumerate(columns):
                mine = users[batch.row[entries]]
                left = self._left(alpha_gram, mine, weight[entries], len(entries), len(batch))
                item_table[item] = np.linalg.solve(left, mine.T @ weight[entries])
        return _with_gramian(item_table)

    def _solve_users(
        self, shared: State, batch: UserBatch, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """[U, d] the user vectors that minimise the loss for fixed items; zero for an empty history."""
        alpha_gram = self.config.unobserved_weight * shared["gramian"].astype(np.float64)
        n_items = int(shared["n_items"][0])
        users = np.zeros((len(batch), self.config.embedding_size))
        for u in range(len(batch)):
            mine = slice(batch.indptr[u], batch.indptr[u + 1])
            count = mine.stop - mine.start
            if count:
                rows = shared["item_table"][batch.item[mine]].astype(np.float64)
                left = self._left(alpha_gram, rows, weight[mine], count, n_items)
                users[u] = np.linalg.solve(left, rows.T @ weight[mine])
        return users

    def _left(
        self,
        alpha_gram: NDArray[np.float64],
        rows: NDArray[np.float64],
        weight: NDArray[np.float64],
        count: int,
        others: int,
    ) -> NDArray[np.float64]:
        """[d, d] left side of the normal equations of one row."""
        c = self.config
        left = alpha_gram + rows.T @ (rows * weight[:, None])
        left[np.diag_indices_from(left)] += c.reg * (count + c.unobserved_weight * others) ** c.reg_exponent
        return left


def _with_gramian(item_table: NDArray[np.float64]) -> State:
    """Shared state of an item table: users need its Gramian, which the rows they touch cannot give."""
    table = item_table.astype(np.float32)
    exact = table.astype(np.float64)
    return {
        "item_table": table,
        "gramian": exact.T @ exact,
        "n_items": np.array([len(table)], dtype=np.int64),
    }
