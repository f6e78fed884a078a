"""One model per cluster of users, for tastes that one model cannot hold.

The first rounds cluster users by the public vectors of what they have (`fedrec.neural.user_clusters`); the others are
those of the base model, once per cluster: a user's update is the base's in the slice of the own cluster and zero
elsewhere, so sums, bounds and noise are as for any model. It is sent whole, k times the base's size, because which
slice is filled says which cluster it is. Local item-item models beside a global one are Christakopoulou and Karypis
2016, "Local item-item models for top-n recommendation" (RecSys); here a cluster also learns from the others' sums, at
the weight `pooling`: 0 gives models that know nothing of each other, 1 the base model k times.

Letters: U users, I items, F width of the public vectors, k clusters, T rounds of clustering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.recommender import DataNeeds, Recommender, RecommenderConfig, RoundSeed, Scores, Sending
from fedrec.core.updates import Block, Layout, State, Updates, UpdateSum
from fedrec.neural import user_clusters as clusters
from fedrec.neural.item_features import FEATURES, required_features
from fedrec.neural.user_clusters import Clusters
from fedrec.recommenders.registry import ClusterableConfig, plain, recommender

#: Prefix of the base's arrays, [k, ...] each.
EACH = "each/"


class ClusteredConfig(RecommenderConfig):
    """Configuration of a model per cluster.

    Attributes:
        base: the model of each cluster; a recommender that states that it is `clusterable`.
        features: F, width of the public vectors by which users are clustered.
        clusters: k.
        cluster_rounds: T; the first finds the centre of all users.
        pooling: what the sums of other clusters count in a cluster's.
    """

    kind: str = "clustered"
    base: ClusterableConfig
    features: int = Field(ge=1)
    clusters: int = Field(default=4, ge=1)
    cluster_rounds: int = Field(default=6, ge=2)
    pooling: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True)
class InSlices:
    """Users of different clusters, each in the slice [c] of a total [k, ...].

    Attributes:
        n_users: U.
        parts: cluster, its users' places, and what they send of one block.
    """

    n_users: int
    parts: tuple[tuple[int, IntArray, Block], ...]

    def squared_norms(self) -> NDArray[np.float64]:
        """[U] as the base has them."""
        out = np.zeros(self.n_users)
        for _, users, block in self.parts:
            out[users] = block.squared_norms()
        return out

    def add_into(self, total: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        """Every user's block times `scale` [U] into the slice of its cluster."""
        for cluster, users, block in self.parts:
            block.add_into(total[cluster], scale[users])


@recommender(ClusteredConfig)
class Clustered(Recommender):
    """Secure k-means, then the base model in every cluster."""

    config: ClusteredConfig
    small: ClassVar[Mapping[str, Any]] = {
        "clusters": 2,
        "cluster_rounds": 2,
        "base": {"kind": "ease", "reg": 5.0},
        "features": 5,
    }

    def __init__(self, config: ClusteredConfig) -> None:
        self.config = config
        base = self._base = plain(config.base)
        rounds = None if base.fixed_rounds is None else base.fixed_rounds + config.cluster_rounds
        # Of the class everywhere else; here the other model decides.
        vars(self).update(fixed_rounds=rounds, gradient_rounds=base.gradient_rounds)
        self.chunk_like(base)

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        return DataNeeds(features=self.config.features)

    @property
    def packages(self) -> tuple[str, ...]:  # noqa: D102
        return self._base.packages

    def conflicts(self, sending: Sending) -> list[str]:  # noqa: D102
        found = super().conflicts(sending)
        if sending.compressed and self.gradient_rounds:
            found.append(
                f"federation.compression is set and model {self.kind!r} has tables of every cluster, which are not "
                "made smaller: drop it"
            )
        return found

    # What is common ------------------------------------------------------------------------------------

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        given = required_features(self.config.kind, features, n_items, self.config.features)
        items = clusters.unit(given).astype(np.float32)
        begun = clusters.start(items, self.config.clusters, seed)
        each = [self._base.init_shared(n_items, seed) for _ in range(self.config.clusters)]
        return {FEATURES: items} | begun.state() | _stacked(each)

    def init_server(self, shared: State) -> State:  # noqa: D102
        return _stacked([self._base.init_server(_slice(shared, c)) for c in range(self.config.clusters)])

    def init_local(self, users: IntArray, seed: int) -> State:  # noqa: D102
        return self._base.init_local(users, seed)

    def noise_schedule(self, rounds: int) -> tuple[float, ...]:  # noqa: D102
        first = min(self.config.cluster_rounds, rounds)
        return (1.0,) * first + self._base.noise_schedule(rounds - first)

    # A round -------------------------------------------------------------------------------------------

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        c = self.config
        if round_ <= c.cluster_rounds:
            return clusters.layout(c.clusters, c.features)
        each = self._base.layout(n_items, round_ - c.cluster_rounds).blocks
        return Layout({name: replace(spec, shape=(c.clusters, *spec.shape)) for name, spec in each.items()})

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:  # noqa: D102
        own = np.unique(batch.item)
        if key.round <= self.config.cluster_rounds:
            return own
        return np.union1d(own, self._base.touched_rows(batch, self._later(key), n_items))

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        if key.round <= self.config.cluster_rounds:
            taste = clusters.tastes(shared[FEATURES], batch)
            return clusters.contributions(Clusters.of(shared), taste), local
        after = {name: values.copy() for name, values in local.items()}
        blocks: dict[str, list[tuple[int, IntArray, Block]]] = {}
        loss, examples = np.zeros(len(batch)), np.zeros(len(batch))
        for c, users in self._members(shared, batch):
            mine = {name: values[users] for name, values in local.items()}
            updates, changed = self._base.compute_updates(
                _slice(shared, c), mine, batch.take(users), self._later(key), n_items
            )
            for name, block in updates.blocks.items():
                blocks.setdefault(name, []).append((c, users, block))
            for name, values in changed.items():
                after[name][users] = values
            if len(updates.loss):
                loss[users], examples[users] = updates.loss, updates.examples
        sliced = {name: InSlices(len(batch), tuple(parts)) for name, parts in blocks.items()}
        return Updates(sliced, len(batch), loss, examples), after

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        found = Clusters.of(shared)
        # By what was summed, not by how often: a round in which no one took part is lost.
        if set(total.blocks) == set(clusters.layout(self.config.clusters, self.config.features).blocks):
            return shared | clusters.moved(found, total).state(), server
        share = found.size / max(float(found.size.sum()), 1e-9)
        steps = [
            self._base.apply(_slice(shared, c), _slice(server, c), self._pooled(total, c, float(share[c])))
            for c in range(self.config.clusters)
        ]
        return shared | _stacked([each for each, _ in steps]), _stacked([each for _, each in steps])

    def _pooled(self, total: UpdateSum, c: int, share: float) -> UpdateSum:
        """A cluster's sum, with the others' at the weight `pooling`."""
        rho = self.config.pooling
        blocks = {
            name: (1.0 - rho) * values[c] + rho * values.sum(axis=0) for name, values in total.blocks.items()
        }
        others = rho**2 * (self.config.clusters - 1)
        users = total.users * ((1.0 - rho) * share + rho)
        return UpdateSum(blocks, max(users, 1.0), noise_std=total.noise_std * float(np.sqrt(1.0 + others)))

    # Scores --------------------------------------------------------------------------------------------

    def fold_in(self, shared: State, batch: UserBatch) -> State:  # noqa: D102
        return self._gathered(
            shared, batch, lambda c, users: self._base.fold_in(_slice(shared, c), batch.take(users))
        )

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        scores = np.zeros((len(batch), len(shared[FEATURES])), dtype=np.float32)
        if not any(name.startswith(EACH) for name in shared):
            return scores
        for c, users in self._members(shared, batch):
            mine = {name: values[users] for name, values in local.items()}
            scores[users] = self._base.score(_slice(shared, c), mine, batch.take(users))
        return scores

    def fit(  # noqa: D102
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        if self._base.fixed_rounds is not None:
            return super().fit(train, seed, rounds, features)
        batch, shared = train.batch(np.arange(train.n_users)), self.init_shared(train.n_items, seed, features)
        for number in range(1, self.config.cluster_rounds + 1):
            shared = self._step(shared, batch, RoundSeed(seed, number))
        return self._fit_each(shared, train, batch, seed, rounds)

    def _fit_each(
        self, shared: State, train: Interactions, batch: UserBatch, seed: int, rounds: int
    ) -> tuple[State, State]:
        """The base's own baseline on each cluster; where everything is in one place, nothing is pooled."""
        fitted = {
            c: self._base.fit(train.select(np.isin(train.user, users)), seed, rounds)
            for c, users in self._members(shared, batch)
        }
        blank = self._base.init_shared(train.n_items, seed)
        each = [fitted[c][0] if c in fitted else blank for c in range(self.config.clusters)]
        local = self._gathered(
            shared, batch, lambda c, users: {name: v[users] for name, v in fitted[c][1].items()}
        )
        return shared | _stacked(each), local

    def _step(self, shared: State, batch: UserBatch, key: RoundSeed) -> State:
        """One round of clustering."""
        n_items = len(shared[FEATURES])
        updates, _ = self.compute_updates(shared, {}, batch, key, n_items)
        blocks = self.layout(n_items, key.round).zeros()
        updates.add_into(blocks, np.ones(len(batch)))
        return self.apply(shared, {}, UpdateSum(blocks, len(batch)))[0]

    # ---------------------------------------------------------------------------------------------------

    def _later(self, key: RoundSeed) -> RoundSeed:
        return RoundSeed(key.seed, key.round - self.config.cluster_rounds)

    def _members(self, shared: State, batch: UserBatch) -> Iterator[tuple[int, IntArray]]:
        """Clusters that have users of a batch, and the users' places in it."""
        own = clusters.assigned(Clusters.of(shared), clusters.tastes(shared[FEATURES], batch))
        for c in np.unique(own):
            yield int(c), np.flatnonzero(own == c)

    def _gathered(self, shared: State, batch: UserBatch, make: Callable[[int, IntArray], State]) -> State:
        """Local state of all users from that of each cluster's."""
        out: State = {}
        for c, users in self._members(shared, batch):
            for name, values in make(c, users).items():
                out.setdefault(name, np.zeros((len(batch), *values.shape[1:]), values.dtype))[users] = values
        return out


def _stacked(each: list[State]) -> State:
    return {EACH + name: np.stack([one[name] for one in each]) for name in each[0]}


def _slice(state: State, c: int) -> State:
    return {
        name.removeprefix(EACH): np.asarray(values[c])
        for name, values in state.items()
        if name.startswith(EACH)
    }
