"""Matrix factorisation by SGD, federated: the user vector stays at home, the item table is common.

The score of item i for user u is p_u · q_i + b_i. Losses: binary cross-entropy over each interaction and n
sampled negatives (He et al. 2017, "Neural collaborative filtering", WWW), or BPR, -log σ(s_positive - s_negative)
(Rendle et al. 2009, UAI). A user runs minibatch SGD on copies of the rows it touches and sends the difference;
the server averages the differences and makes a step of its own optimiser (McMahan et al. 2017; Reddi et al. 2021).

Letters: U users, I items, d embedding size, n negatives, B minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.randomness import Purpose, key, normal, user_keys
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.updates import BlockSpec, Layout, Rows, State, Updates, UpdateSum
from fedrec.neural.device_optimizer import DeviceOptimizer
from fedrec.neural.example_gradients import PublicKey, uniform_rows
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.neural.views import LocalViews, build_views
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Newton
from fedrec.ranking.tables import FloatTable
from fedrec.recommenders.registry import recommender

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedrec.neural.batched import Params


class MfConfig(RecommenderConfig):
    """Configuration of matrix factorisation.

    Attributes:
        embedding_size: d.
        loss: "bce" or "bpr".
        negatives: n, drawn anew in every round among the items that the user does not have.
        local_epochs: passes over the history in one round.
        batch_size: B, groups (a positive and its negatives) of one local step.
        learning_rate: of the local steps; gradients are summed over the minibatch.
        reg: weight of |p_u|² / 2 per group, and of weight decay of the item table on the server.
        init_scale: standard deviation of the initial vectors' norms.
        server: the server's optimiser.
        fold_in_epochs: passes over the history for the vector of a user who took no part in training.
        backend: "compiled" (numba) or "torch" (the generic batched path); the same arithmetic.
    """

    kind: str = "mf"
    embedding_size: int = Field(default=32, ge=1)
    loss: Literal["bce", "bpr"] = "bce"
    negatives: int = Field(default=4, ge=1)
    local_epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    reg: float = Field(default=0.01, ge=0)
    init_scale: float = Field(default=0.1, gt=0)
    server: ServerOptimizer = ServerOptimizer()
    fold_in_epochs: int = Field(default=20, ge=1)
    backend: Literal["compiled", "torch"] = "compiled"


@recommender(MfConfig)
class MatrixFactorisation(Recommender):
    """p_u · q_i + b_i with p_u private."""

    config: MfConfig
    gradient_rounds: ClassVar[bool] = True
    clusterable: ClassVar[bool] = True
    serves_exactly: ClassVar[bool] = False
    chunk_users: ClassVar[int] = 16
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 4,
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def __init__(self, config: MfConfig) -> None:
        self.config = config

    @property
    def packages(self) -> tuple[str, ...]:
        """torch for the generic path alone."""
        return ("torch",) if self.config.backend == "torch" else ()

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        return Layout(
            {
                "item_table": BlockSpec((n_items, self.config.embedding_size)),
                "item_bias": BlockSpec((n_items,)),
            }
        )

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        return {
            "item_table": self._vectors(key(seed, Purpose.INIT_SHARED), np.arange(n_items)),
            "item_bias": np.zeros(n_items, dtype=np.float32),
        }

    def init_server(self, shared: State) -> State:  # noqa: D102
        return self.config.server.init(shared)

    def init_local(self, users: IntArray, seed: int) -> State:  # noqa: D102
        return {"user_vector": self._vectors(key(seed, Purpose.INIT_LOCAL), users)}

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:  # noqa: D102
        return np.unique(self._views(batch, key, n_items, self.config.local_epochs).row)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        views = self._views(batch, key, n_items, self.config.local_epochs)
        if self.config.backend == "torch":
            return self._torch_updates(shared, local, views)
        users = local["user_vector"].astype(np.float32)
        table, bias, loss = self._run_kernel(shared, users, views)
        blocks = {
            "item_table": Rows(views.row_ptr, views.row, table),
            "item_bias": Rows(views.row_ptr, views.row, bias),
        }
        examples = batch.counts * self.config.local_epochs * (1 + self.config.negatives)
        return Updates(blocks, len(batch), loss, examples.astype(np.float64)), {"user_vector": users}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        mean = {name: values / total.users for name, values in total.blocks.items()}
        after, server = self.config.server.apply(shared, server, mean)
        decay = np.float32(1.0 - self.config.server.rate(server) * self.config.reg)
        return after | {"item_table": after["item_table"] * decay}, server

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        users = self._vectors(key(0, Purpose.INIT_LOCAL), batch.user)
        for epoch in range(self.config.fold_in_epochs):
            views = self._views(batch, RoundSeed(0, epoch), len(shared["item_bias"]), 1)
            self._run_kernel(shared, users, views)
        return {"user_vector": users}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        return np.asarray(
            local["user_vector"] @ shared["item_table"].T + shared["item_bias"], dtype=np.float32
        )

    def serving(self, shared: State) -> Factors:
        """Users are folded in by Newton steps instead of sampled gradient descent: deterministic and faster."""
        c = self.config
        newton = Newton(c.loss, c.negatives, c.reg, pull=1.0 / (c.learning_rate * c.fold_in_epochs))
        return Factors(FloatTable(shared["item_table"]), newton, shared["item_bias"].astype(np.float32))

    def fit(
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        """Centralised SGD on one table: users in a fresh random order each epoch, every step seen by the next."""
        from fedrec.recommenders.collaborative import _mf_kernel as mf_kernel

        c, batch = self.config, train.batch(np.arange(train.n_users))
        shared, users = (
            self.init_shared(train.n_items, seed),
            self.init_local(batch.user, seed)["user_vector"],
        )
        kind = mf_kernel.BCE if c.loss == "bce" else mf_kernel.BPR
        for epoch in range(1, rounds + 1):
            order = np.argsort(user_keys(key(seed, Purpose.COHORT, epoch), batch.user), kind="stable")
            views = self._views(batch, RoundSeed(seed, epoch), train.n_items, 1)
            mf_kernel.train_in_place(
                order, views.row_ptr, views.row, views.example_ptr, views.slot, shared["item_table"],
                shared["item_bias"], users, kind, c.learning_rate, c.reg, c.batch_size,
            )  # fmt: skip
            shared["item_table"] *= np.float32(1.0 - c.learning_rate * c.reg)
        return shared, {"user_vector": users}

    def _views(self, batch: UserBatch, round_key: RoundSeed, n_items: int, epochs: int) -> LocalViews:
        return build_views(batch, round_key.seed, round_key.round, n_items, self.config.negatives, epochs)

    def _run_kernel(
        self, shared: State, users: Scores, views: LocalViews
    ) -> tuple[Scores, Scores, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """Train `users` [U, d] in place; the deltas of table and bias [N, ...] and the loss [U]."""
        from fedrec.recommenders.collaborative import _mf_kernel as mf_kernel

        c = self.config
        table = np.empty((len(views.row), c.embedding_size), dtype=np.float32)
        bias = np.empty(len(views.row), dtype=np.float32)
        loss = np.zeros(len(users))
        kind = mf_kernel.BCE if c.loss == "bce" else mf_kernel.BPR
        mf_kernel.train(
            views.row_ptr, views.row, views.example_ptr, views.slot, shared["item_table"], shared["item_bias"],
            users, kind, c.learning_rate, c.reg, c.batch_size, table, bias, loss,
        )  # fmt: skip
        return table, bias, loss

    def _torch_updates(self, shared: State, local: State, views: LocalViews) -> tuple[Updates, State]:
        from fedrec.neural.batched import train_batched
        from fedrec.neural.example_groups import GroupWork

        work = GroupWork(self.objective, views, self.config.batch_size)
        rule = DeviceOptimizer(learning_rate=self.config.learning_rate)
        return train_batched(work, rule, shared, {}, local, work.touched)

    def objective(self, params: Params, slots: Tensor, mask: Tensor) -> Tensor:
        """[K] the loss that the kernel minimises, for the generic path."""
        from fedrec.neural.example_groups import group_loss
        from fedrec.neural.gather import gather_rows

        users = params["user_vector"]
        rows = gather_rows(params["item_table"], slots)
        scores = (rows * users[:, None, None, :]).sum(-1) + gather_rows(params["item_bias"], slots)
        penalty = self.config.reg / 2 * mask.sum(1) * users.square().sum(1)
        return group_loss(scores, mask, self.config.loss) + penalty

    @property
    def device_learning_rate(self) -> float:  # noqa: D102
        return self.config.learning_rate

    def device_rows(self, item: IntArray, user: int, step: int, key: PublicKey, n_items: int) -> IntArray:  # noqa: D102
        return uniform_rows(item, user, step, key, n_items, self.config.negatives)

    def device_module(self, rows: State, local: State) -> nn.Module:  # noqa: D102
        from fedrec.recommenders.collaborative._mf_device import MfModule

        return MfModule(rows, local, self.config.loss, self.config.reg)

    def device_gradients(self, module: nn.Module, attribute: str) -> tuple[State, State]:  # noqa: D102
        from fedrec.recommenders.collaborative._mf_device import MfModule

        if not isinstance(module, MfModule):
            raise TypeError(f"{type(module).__name__} is not the module that device_module made")
        return module.collect(attribute)

    def _vectors(self, base: np.uint64, index: IntArray) -> Scores:
        d = self.config.embedding_size
        vectors = normal(user_keys(base, index), d) * (self.config.init_scale / np.sqrt(d))
        return np.asarray(vectors, dtype=np.float32)
