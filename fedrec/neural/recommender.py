"""What models trained by gradients have in common: parameters, a user's work in a round, the centralised baseline.

A round is federated SGD or averaging (McMahan et al. 2017, AISTATS): each user of the cohort makes one or several
steps on its own history and sends the change; the server makes a step of its own optimiser with the mean (Reddi et
al. 2021, ICLR). With one step a round and a cohort drawn by coins, a round is one step of centralised minibatch
training whose minibatch is the cohort; what is left between the two is clipping, noise and who happens to be in a
minibatch.

Letters: U users, K users of a chunk, I items, d embedding size.
Final classes give `parameters`, `work` and `user_scores`; nothing here knows what is recommended how.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.randomness import Purpose, absorb, key, normal, user_keys
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import BlockSpec, Layout, State, Updates, UpdateSum
from fedrec.neural.device_optimizer import DeviceOptimizer
from fedrec.neural.item_features import FEATURES
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.neural.wrapper_settings import Personal, Scaffold

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work


class NeuralConfig(RecommenderConfig):
    """Keys of every model trained by gradients.

    Attributes:
        local_epochs: passes over the user's work in one round.
        device: the optimiser on the device.
        server: the server's optimiser, on the mean of the users' changes.
        weight_decay: on the server, of every shared parameter, in units of its learning rate (Loshchilov and Hutter
            2019, ICLR).
        batch_users: users of a minibatch of the centralised baseline.
        fold_in_epochs: rounds, of `local_epochs` passes over the history, for the personal parameters of a user who
            took no part.
        personal: what stays on the device beside what does so anyway; None: nothing.
        scaffold: control variates against the drift of local steps; None: none.
    """

    local_epochs: int = Field(default=1, ge=1)
    device: DeviceOptimizer = DeviceOptimizer()
    server: ServerOptimizer = ServerOptimizer(name="adam", learning_rate=0.002)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_users: int = Field(default=64, ge=1)
    fold_in_epochs: int = Field(default=10, ge=1)
    personal: Personal | None = None
    scaffold: Scaffold | None = None


@dataclass(frozen=True)
class Parameter:
    """One array of the model.

    Attributes:
        shape: of a table without its first axis, the items; of a local parameter without the users.
        std: standard deviation of its normal initial values; 0: all are `fill`.
        fill: mean of the initial values.
        where: "table" has a row per item, "dense" is shared and seen whole, "local" stays on the device.
    """

    shape: tuple[int, ...]
    std: float = 0.0
    fill: float = 0.0
    where: Literal["table", "dense", "local"] = "dense"

    def values(self, keys: NDArray[np.uint64]) -> Scores:
        """[n, *shape] initial values, one draw per key."""
        size = int(np.prod(self.shape))
        flat = np.full((len(keys), size), self.fill)
        if self.std:
            flat += self.std * normal(keys, size)
        return flat.reshape(len(keys), *self.shape).astype(np.float32)


class NeuralRecommender(Recommender):
    """Base of the models that are trained by gradients."""

    gradient_rounds: ClassVar[bool] = True
    chunk_users: ClassVar[int] = 16

    @property
    def packages(self) -> tuple[str, ...]:
        """torch."""
        return ("torch",)

    def __init__(self, config: NeuralConfig) -> None:
        self._neural = config

    @abstractmethod
    def parameters(self) -> dict[str, Parameter]:
        """Every array of the model, by name."""

    @abstractmethod
    def work(
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        """What each user of the batch does in a round, and which rows it touches (None: all).

        Args:
            batch: K users.
            key: seed and round.
            n_items: I.
            shared: for its constants alone; while only `touched_rows` is asked for it is empty.
        """

    @abstractmethod
    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:
        """[U, I] scores; parameters as while training, each [U, ...], tables as views [U, I, ...]."""

    # The contract --------------------------------------------------------------------------------------

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        return Layout(
            {
                name: BlockSpec((n_items, *p.shape) if p.where == "table" else p.shape)
                for name, p in self.parameters().items()
                if p.where != "local"
            }
        )

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        base, out = key(seed, Purpose.INIT_SHARED), {}
        for position, (name, p) in enumerate(self.parameters().items()):
            if p.where == "local":
                continue
            stream = absorb(np.array([base]), np.array([position], dtype=np.uint64))[0]
            rows = np.arange(n_items if p.where == "table" else 1)
            values = p.values(user_keys(stream, rows))
            out[name] = values if p.where == "table" else values[0]
        # Whoever does not read them should not have them sent in every round.
        if features is None or not getattr(self._neural, "features", False):
            return out
        return out | {FEATURES: features.astype(np.float32)}

    def init_server(self, shared: State) -> State:  # noqa: D102
        return self._neural.server.init(self._learned(shared))

    def init_local(self, users: IntArray, seed: int) -> State:  # noqa: D102
        base, out = key(seed, Purpose.INIT_LOCAL), {}
        for position, (name, p) in enumerate(self.parameters().items()):
            if p.where == "local":
                stream = absorb(np.array([base]), np.array([position], dtype=np.uint64))[0]
                out[name] = p.values(user_keys(stream, users))
        return out

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:  # noqa: D102
        touched = self.work(batch, key, n_items, {})[1]
        return np.arange(n_items) if touched is None else np.unique(touched.row)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        from fedrec.neural.batched import train_batched

        work, touched = self.work(batch, key, n_items, shared)
        tables, dense = self.split(shared)
        return train_batched(work, self.device.at(key.round), tables, dense, local, touched)

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        mean = {name: values / total.users for name, values in total.blocks.items()}
        learned = self._learned(shared)
        after, server = self._neural.server.apply(learned, server, mean)
        if self._neural.weight_decay:
            keep = np.float32(1.0 - self._neural.server.rate(server) * self._neural.weight_decay)
            after = {name: values * keep for name, values in after.items()}
        return shared | after, server

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        local = self.init_local(batch.user, 0)
        return self.learn_local(shared, local, batch, self.device) if local else {}

    def learn_local(self, shared: State, local: State, batch: UserBatch, rule: DeviceOptimizer) -> State:
        """Personal parameters after `fold_in_epochs` rounds over the history, in which nothing shared moves."""
        from fedrec.neural.batched import train_batched
        from fedrec.neural.device_optimizer import Stepper

        tables, dense = self.split(shared)
        after = {name: values.copy() for name, values in local.items()}
        # As in training: few users at once, and those with histories of like length together.
        order = np.argsort(batch.counts, kind="stable")
        for piece, chunk in batch.take(order).chunks(self.chunk_entries, self.chunk_users):
            where = order[piece]
            own = {name: values[where] for name, values in local.items()}
            stepper = Stepper(rule, frozenset((*tables, *dense)))
            for epoch in range(1, self._neural.fold_in_epochs + 1):
                work, touched = self.work(chunk, RoundSeed(0, epoch), self.n_items(shared), shared)
                _, own = train_batched(work, stepper, tables, dense, own, touched, learns="local")
            for name, values in own.items():
                after[name][where] = values
        return after

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        import torch

        from fedrec.neural.batched import views

        tables, dense = self.split(shared)
        with torch.no_grad():
            params = views(tables, dense, local, None, len(batch))
            scores: Scores = self.user_scores(params, shared, batch).numpy()
        return scores

    def fit(  # noqa: D102
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        *_, last = itertools.islice(self.sweeps(train, seed, features), rounds)
        return last

    def sweeps(
        self, train: Interactions, seed: int, features: Scores | None = None
    ) -> Iterator[tuple[State, State]]:
        """Shared and local state after each pass of the baseline: minibatches of users in a fresh order."""
        everyone = train.batch(np.arange(train.n_users))
        shared = self.init_shared(train.n_items, seed, features)
        server, local = self.init_server(shared), self.init_local(everyone.user, seed)
        some, step = np.flatnonzero(everyone.counts > 0), 0
        for epoch in itertools.count(1):
            draws = user_keys(key(seed, Purpose.COHORT, epoch), everyone.user[some])
            order = some[np.argsort(draws, kind="stable")]
            for start in range(0, len(order), self._neural.batch_users):
                rows = order[start : start + self._neural.batch_users]
                rows = rows[np.argsort(everyone.counts[rows], kind="stable")]
                step += 1
                with one_blas_thread():
                    shared, server = self.minibatch(
                        shared, server, local, rows, everyone.take(rows), RoundSeed(seed, step)
                    )
            yield shared, {name: values.copy() for name, values in local.items()}

    def minibatch(
        self, shared: State, server: State, local: State, rows: IntArray, batch: UserBatch, key: RoundSeed
    ) -> tuple[State, State]:
        """One step of the baseline: shared and server state after it; `local` changes in place."""
        from fedrec.neural._central_step import central_step

        return central_step(self, shared, server, local, rows, batch, key)

    # Parts ---------------------------------------------------------------------------------------------

    @property
    def training(self) -> NeuralConfig:
        """The common part of the configuration."""
        return self._neural

    @property
    def device(self) -> DeviceOptimizer:
        """The optimiser on the device."""
        return self._neural.device

    def n_items(self, shared: State) -> int:
        """I of a shared state."""
        if FEATURES in shared:
            return len(shared[FEATURES])
        table = next(name for name, p in self.parameters().items() if p.where == "table")
        return len(shared[table])

    def _learned(self, shared: State) -> State:
        """Without constants."""
        names = {name for name, p in self.parameters().items() if p.where != "local"}
        return {name: values for name, values in shared.items() if name in names}

    def split(self, shared: State) -> tuple[State, State]:
        """Tables and dense parameters."""
        where = {name: p.where for name, p in self.parameters().items()}
        tables = {name: values for name, values in shared.items() if where.get(name) == "table"}
        return tables, {name: values for name, values in shared.items() if where.get(name) == "dense"}
