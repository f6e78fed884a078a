"""SCAFFOLD: local steps corrected for where the user's own data pulls them.

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning" (ICML), option II. A user
steps along g + c - c_u; after k steps with rate η, which moved the model by Δ, its control variate becomes
c_u - c - Δ / (k η), and the server's moves by the sum of these changes over N, all users: it is the mean of theirs.

Both c and c_u are as long as the model. c is part of the shared state and is broadcast with it, the change of c_u
goes up beside Δ: a round costs twice the bytes, and a device keeps a model of its own, which is refused above a
limit. Bounding and noise cover both halves as one vector; what was cut off an update does stay in c_u, so that under
a tight bound c is no longer the mean of the c_u, and only slowly becomes it again. Parts that are never sent (low
rank, some rows) would be lost to c for good: such runs are refused.

Letters: K users, N all users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import Interactions, UserBatch
from fedrec.core.recommender import DataNeeds, RoundSeed, Scores, Sending, ServingForm
from fedrec.core.updates import Dense, State, Updates, UpdateSum
from fedrec.neural.recommender import NeuralRecommender, Parameter
from fedrec.neural.wrapper_settings import Scaffold
from fedrec.recommenders.registry import WRAPPERS

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work

COMMON, OWN = "control/", "own_control/"


@WRAPPERS.register("scaffold")
class Scaffolded(NeuralRecommender):
    """Another model whose local steps are corrected.

    Raises:
        ConfigError: a model that cannot be corrected, or too large to keep.
    """

    def __init__(self, base: NeuralRecommender, settings: Scaffold) -> None:
        super().__init__(base.training)
        self.config = base.training
        self._base, self._settings = base, settings
        # Of the class everywhere else; here the other model decides.
        vars(self).update(kind=base.kind)
        self.chunk_like(base)
        self._learned_names = tuple(name for name, p in base.parameters().items() if p.where != "local")
        self._check()

    def _check(self) -> None:
        rule, layout = self.device, self._base.layout(self._settings.items)
        if rule.name != "sgd" or rule.proximal:
            raise ConfigError(
                "model.scaffold reads gradients from plain steps: set device.name = 'sgd', proximal = 0"
            )
        if 4 * layout.size > self._settings.byte_limit:
            raise ConfigError(
                f"model.scaffold would keep {4 * layout.size:,} bytes on every device, more than "
                f"{self._settings.byte_limit:,}: take a smaller model or raise model.scaffold.byte_limit"
            )
        two = np.array([0, 1]) % self._settings.items
        probe = UserBatch(np.array([0]), np.array([0, 2]), two, np.ones(2, dtype=np.float32))
        if self._base.work(probe, RoundSeed(0, 1), self._settings.items, {})[1] is not None:
            raise ConfigError(
                f"model.scaffold corrects every row of a table, but model {self._base.kind!r} touches some: use "
                "a loss over the whole catalogue (loss = 'full')"
            )

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        return self._base.needs

    def conflicts(self, sending: Sending) -> list[str]:  # noqa: D102
        found, size = super().conflicts(sending), self.layout(self._settings.items).size
        if sending.limit is not None and size > sending.limit:
            found.append(
                f"model.scaffold sends {size:,} values and {sending.limit:,} are sent in a round: what is left out "
                "would be lost to the control variates; take a smaller model, or raise federation.shard_parameters"
            )
        if sending.partly:
            found.append(
                "federation.compression.rank and rows leave parts out, which would be lost to the control variates "
                "of model.scaffold: drop one of them"
            )
        return found

    def size_conflicts(self, n_users: int, n_items: int) -> list[str]:  # noqa: D102
        found = []
        if n_items != self._settings.items:
            found.append(
                f"model.scaffold.items is {self._settings.items}, the catalogue has {n_items}: set it to that"
            )
        if n_users != self._settings.users:
            found.append(
                f"model.scaffold.users is {self._settings.users}, the data have {n_users} users: set it to that"
            )
        return found

    # The model -----------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Parameter]:  # noqa: D102
        base, out = self._base.parameters(), {}
        for name in self._learned_names:
            p = base[name]
            rows = (self._settings.items,) if p.where == "table" else ()
            out[COMMON + name] = Parameter(p.shape, where=p.where)
            out[OWN + name] = Parameter((*rows, *p.shape), where="local")
        return base | out

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        if n_items != self._settings.items:
            raise ConfigError(
                f"model.scaffold.items is {self._settings.items}, the catalogue has {n_items}: set it to that"
            )
        shared = self._base.init_shared(n_items, seed, features)
        return shared | {COMMON + name: np.zeros_like(shared[name]) for name in self._learned_names}

    def init_server(self, shared: State) -> State:  # noqa: D102
        return self._base.init_server(shared)

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        return self._base.work(batch, key, n_items, shared)

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        return self._base.user_scores(params, shared, batch)

    # Learning ------------------------------------------------------------------------------------------

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        import torch

        from fedrec.neural.batched import train_batched

        work, _ = self.work(batch, key, n_items, shared)
        tables, dense = self._base.split(shared)
        pull = {name: shared[COMMON + name] - local[OWN + name] for name in self._learned_names}
        rule, own = self.device.at(key.round), self._base_local(local)
        corrections = {name: torch.from_numpy(values) for name, values in pull.items()}
        updates, after = train_batched(work, rule, tables, dense, own, None, corrections)
        passed = _steps(work)
        blocks = dict(updates.blocks)
        for name in self._learned_names:
            block = updates.blocks[name]
            assert isinstance(block, Dense)
            column = passed.reshape(-1, *[1] * (block.values.ndim - 1))
            mean_step = -block.values / (rule.learning_rate * np.maximum(column, 1))
            # Who made no step has learned nothing new.
            change = np.where(column > 0, mean_step - shared[COMMON + name], 0).astype(np.float32)
            blocks[COMMON + name] = Dense(change)
            after[OWN + name] = local[OWN + name] + change
        return Updates(blocks, len(batch), updates.loss, updates.examples), after

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        after, server = self._base.apply(shared, server, total)
        for name in self._learned_names:
            moved = shared[COMMON + name] + total.blocks[COMMON + name] / self._settings.users
            after[COMMON + name] = moved.astype(np.float32)
        return after, server

    def sweeps(
        self, train: Interactions, seed: int, features: Scores | None = None
    ) -> Iterator[tuple[State, State]]:
        """The other model's: where all data lies no step drifts."""
        return self._base.sweeps(train, seed, features)

    # Serving -------------------------------------------------------------------------------------------

    def fold_in(self, shared: State, batch: UserBatch) -> State:
        """The other model's state, and control variates of zero."""
        return self.init_local(batch.user, 0) | self._base.fold_in(shared, batch)

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        return self._base.score(shared, self._base_local(local), batch)

    def serving_refusal(self) -> str | None:  # noqa: D102
        return self._base.serving_refusal()

    def serving(self, shared: State) -> ServingForm:  # noqa: D102
        return self._base.serving({n: values for n, values in shared.items() if not n.startswith(COMMON)})

    @staticmethod
    def _base_local(local: State) -> State:
        return {name: values for name, values in local.items() if not name.startswith(OWN)}


def _steps(work: Work) -> NDArray[np.float64]:
    """[K] how many steps each user has made."""
    total = np.zeros(len(work.examples))
    for step in range(work.steps):
        active = work.active(step)
        total += 1.0 if active is None else active.double().numpy()
    return total
