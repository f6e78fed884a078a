"""Personalisation levels: how much of a model is a user's own, and when that part learns.

* "fedper" (Arivazhagan et al. 2019, "Federated learning with personalization layers"): shared and personal part learn
  jointly, in the same steps.
* "fedrep" (Collins et al. 2021, ICML): first the personal part for `steps` passes, then the shared part.
* "fedrecon" (Singhal et al. 2021, NeurIPS): nothing personal is stored. In each round the personal part is learned
  anew from the older half of the events, and the shared part from the newer half given it; whoever is served does
  the same with the whole history.
* "mixed" (after Deng et al. 2020, "Adaptive personalized federated learning"): the shared model learns as if nothing
  were personal; where recommendations are made a copy's head is tuned on the own history without its latest events,
  and the weight between the two models' scores is the one that predicts these events best.

Personal are the parameters that the model keeps on the device anyway (user vectors), those that are named, and for
models of the next item a head (`fedrec.neural.head`). None of them is ever part of an update.

Letters: U users, K users of a chunk, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.recommender import DataNeeds, RoundSeed, Scores
from fedrec.core.updates import State, Updates, UpdateSum
from fedrec.neural.device_optimizer import DeviceOptimizer
from fedrec.neural.head import head_parameters
from fedrec.neural.recommender import NeuralRecommender, Parameter
from fedrec.neural.sequence import SequenceRecommender
from fedrec.neural.support_query import halved
from fedrec.neural.wrapper_settings import Personal
from fedrec.recommenders.registry import WRAPPERS

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work


@WRAPPERS.register("personal")
class Personalised(NeuralRecommender):
    """Another model with a personal part.

    Raises:
        ConfigError: a model of which nothing can be personal in this way.
    """

    def __init__(self, base: NeuralRecommender, personal: Personal) -> None:
        super().__init__(base.training)
        self.config = base.training
        self._base, self._personal = base, personal
        # Of the class everywhere else; here the other model decides.
        vars(self).update(kind=base.kind)
        self.chunk_like(base)
        self._parameters = _with_personal_part(base, personal)

    @property
    def _keeps(self) -> bool:
        """Whether the personal part outlives a round."""
        return self._personal.level in ("fedper", "fedrep")

    @property
    def device(self) -> DeviceOptimizer:
        """Of shared and personal part where they learn jointly."""
        rate = {"local_learning_rate": self._personal.device.learning_rate}
        return super().device.model_copy(update=rate)

    # The model -----------------------------------------------------------------------------------------

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        return self._base.needs

    def parameters(self) -> dict[str, Parameter]:  # noqa: D102
        return self._parameters

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        shared = self._base.init_shared(n_items, seed, features)
        return {name: values for name, values in shared.items() if name not in self._personal.parameters}

    def init_local(self, users: IntArray, seed: int) -> State:  # noqa: D102
        return self._untrained(users, seed) if self._keeps else {}

    def _untrained(self, users: IntArray, seed: int) -> State:
        return super().init_local(users, seed)

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
        match self._personal.level:
            case "fedper":
                return super().compute_updates(shared, local, batch, key, n_items)
            case "mixed":
                return self._base.compute_updates(shared, {}, batch, key, n_items)
        from fedrec.neural.batched import train_batched

        work, touched = self.work(batch, key, n_items, shared)
        first = second = work
        if self._personal.level == "fedrecon":
            local = self._untrained(batch.user, key.seed)
            first, second = halved(work, newer=False), halved(work, newer=True)
        tables, dense = self.split(shared)
        own = _Repeated(first, self._personal.steps)
        rule = self._personal.device.at(key.round)
        _, local = train_batched(own, rule, tables, dense, local, touched, learns="local")
        rule = self.device.at(key.round)
        updates, _ = train_batched(second, rule, tables, dense, local, touched, learns="shared")
        return updates, local if self._keeps else {}

    def minibatch(  # noqa: D102
        self, shared: State, server: State, local: State, rows: IntArray, batch: UserBatch, key: RoundSeed
    ) -> tuple[State, State]:
        if self._personal.level == "fedper":
            return super().minibatch(shared, server, local, rows, batch, key)
        total = UpdateSum(self.layout(self.n_items(shared)).zeros(), users=len(batch))
        for where, piece in batch.chunks(self.chunk_entries, self.chunk_users):
            own = {name: values[rows[where]] for name, values in local.items()}
            updates, after = self.compute_updates(shared, own, piece, key, self.n_items(shared))
            updates.add_into(total.blocks, np.ones(len(piece)))
            for name, values in after.items():
                local[name][rows[where]] = values
        return self.apply(shared, server, total)

    def sweeps(  # noqa: D102
        self, train: Interactions, seed: int, features: Scores | None = None
    ) -> Iterator[tuple[State, State]]:
        if self._personal.level == "mixed":
            return self._base.sweeps(train, seed, features)
        return super().sweeps(train, seed, features)

    # Serving -------------------------------------------------------------------------------------------

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        return self._reconstruct(shared, batch) if self._keeps else {}

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        match self._personal.level:
            case "mixed":
                return self._mixed_scores(shared, batch)
            case "fedrecon":
                local = self._reconstruct(shared, batch)
        return super().score(shared, local, batch)

    def serving_refusal(self) -> str | None:  # noqa: D102
        return "a model with a personal part cannot serve on a device yet: train it without one"

    def _reconstruct(self, shared: State, batch: UserBatch) -> State:
        """The personal part of a history alone."""
        return self.learn_local(shared, self._untrained(batch.user, 0), batch, self._personal.device)

    def _mixed_scores(self, shared: State, batch: UserBatch) -> Scores:
        latest = np.minimum(self._personal.evaluated, batch.counts // 4)
        own = self._reconstruct(shared, _without_latest(batch, latest))
        weights = np.array(self._personal.weights, dtype=np.float32)
        loss = np.zeros((len(weights), len(batch)))
        for known in range(int(latest.max(initial=0))):
            ahead = np.maximum(latest - known, 0)
            plain, personal = self._both_scores(shared, own, _without_latest(batch, ahead))
            loss += _losses(plain, personal, weights, batch, ahead)
        plain, personal = self._both_scores(shared, own, batch)
        weight = weights[loss.argmin(axis=0), None]
        return plain + weight * (personal - plain)

    def _both_scores(self, shared: State, own: State, batch: UserBatch) -> tuple[Scores, Scores]:
        """Of the shared model, and with the personal part."""
        return super().score(shared, {}, batch), super().score(shared, own, batch)


@dataclass(frozen=True)
class _Repeated:
    """Another work several times over."""

    inner: Work
    times: int

    @property
    def steps(self) -> int:
        return self.inner.steps * self.times

    @property
    def examples(self) -> NDArray[np.float64]:
        return self.inner.examples * self.times

    def active(self, step: int) -> Tensor | None:
        return self.inner.active(step % self.inner.steps)

    def loss(self, params: Params, step: int) -> Tensor:
        return self.inner.loss(params, step % self.inner.steps)


def _with_personal_part(base: NeuralRecommender, personal: Personal) -> dict[str, Parameter]:
    """Every parameter, with where it lives."""
    out = base.parameters()
    for name in personal.parameters:
        known = out.get(name)
        if known is None or known.where != "dense" or known.std:
            raise ConfigError(
                f"model.personal.parameters names {name!r}: expected dense parameters of model {base.kind!r} that "
                f"begin constant ({', '.join(_constant(out)) or 'it has none'})"
            )
        out[name] = replace(known, where="local")
    own_already = any(p.where == "local" for p in out.values())
    if isinstance(base, SequenceRecommender):
        out |= head_parameters(base.settings.embedding_size)
    elif not own_already or personal.level == "mixed":
        raise ConfigError(
            f"model.personal.level = {personal.level!r} finds nothing to personalise in model {base.kind!r}: choose "
            "a model of the next item, or one with user vectors ('mixed': the former alone)"
        )
    if personal.level == "mixed" and personal.parameters:
        raise ConfigError(
            "model.personal.level = 'mixed' tunes the head alone: leave model.personal.parameters empty"
        )
    if personal.level == "fedrecon" and base.training.local_epochs > 1:
        raise ConfigError(
            "model.personal.level = 'fedrecon' keeps the halves of a history apart in one pass: set local_epochs to 1"
        )
    return out


def _constant(parameters: dict[str, Parameter]) -> list[str]:
    return [name for name, p in parameters.items() if p.where == "dense" and not p.std]


def _without_latest(batch: UserBatch, latest: IntArray) -> UserBatch:
    """The histories without the latest [U] events of each user."""
    return batch.keep(batch.age >= np.repeat(latest, batch.counts))


def _losses(
    plain: Scores, personal: Scores, weights: Scores, batch: UserBatch, ahead: IntArray
) -> NDArray[np.float64]:
    """[W, U] how unlikely the event `ahead` [U] events before the end is, under each weight; 0 of nothing ahead."""
    some = np.flatnonzero(ahead)
    item = batch.item[batch.indptr[1:][some] - ahead[some]]
    out = np.zeros((len(weights), len(batch)))
    for position, weight in enumerate(weights):
        scores = plain[some] + weight * (personal[some] - plain[some])
        top = scores.max(axis=1)
        normaliser = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        out[position, some] = normaliser - scores[np.arange(len(some)), item]
    return out
