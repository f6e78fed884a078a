"""The one contract behind which every recommender lives.

A recommender is pure: it holds a frozen configuration and no data. What is common to all users is the
*shared* state (it is broadcast); what is personal is *local* state (it never leaves the device); a user's
update is a function of both and of the user's own history, and the server only ever sees sums of updates.

A recommender of a fixed number of rounds gives `layout`, `compute_updates`, `apply` and `score`; everything else has
a default that is right for it.

Letters: U users, I items, F width of public item features, R width of review vectors, N interactions of a batch.
Out of scope: clipping, noise, aggregation, transport, evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.updates import Layout, State, Updates, UpdateSum

Scores = NDArray[np.float32]


class RecommenderConfig(BaseModel):
    """Base of every recommender's configuration: frozen, unknown keys refused.

    Attributes:
        kind: the recommender's name, or the import path "package.module:Name" under which it was found. Each
            configuration gives its name as the default.

    Example:
        >>> import fedrec
        >>> experiment = fedrec.load_experiment("movietweetings-ease")
        >>> isinstance(experiment.model, fedrec.RecommenderConfig), experiment.model.kind
        (True, 'ease')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = ""

    @field_validator("kind")
    @classmethod
    def _is_its_own(cls, value: str) -> str:
        name = cls.model_fields["kind"].default
        if value != name and ":" not in value:
            raise ValueError(f"expected {name!r}, the recommender of this configuration")
        return value


@dataclass(frozen=True)
class RoundSeed:
    """Where the randomness of one round comes from."""

    seed: int
    round: int


@dataclass(frozen=True)
class DataNeeds:
    """What a recommender reads beside who had which item, in which order.

    Attributes:
        ratings: lowest and highest rating that it learns from; None: every interaction counts 1.
        times: seconds since 1970, not the order alone.
        features: F, width of the public features of items; 0: none.
        reviews: R, width of the vectors of what users wrote; 0: none.
    """

    ratings: tuple[float, float] | None = None
    times: bool = False
    features: int = 0
    reviews: int = 0


@dataclass(frozen=True)
class Sending:
    """What a run does with updates before they are summed, as far as a recommender may not support it.

    Attributes:
        sampling_rate: part of the users in a round.
        compressed: whether `federation.compression` is set.
        partly: whether it leaves parts of an update out (rank or rows).
        limit: most values of an update that are sent in a round; None: all.
    """

    sampling_rate: float = 1.0
    compressed: bool = False
    partly: bool = False
    limit: int | None = None


class ServingForm(Protocol):
    """What a recommender scores with on a device: a serving model of `fedrec.ranking`."""

    @property
    def n_items(self) -> int:
        """I."""

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and a header of plain values."""


class Recommender(ABC):
    """One recommender, federated and centralised from the same code.

    Args:
        config: its frozen configuration.

    Example:
        >>> import fedrec
        >>> from fedrec.recommenders.registry import build
        >>> model = build(fedrec.load_experiment("movietweetings-ease").model)
        >>> isinstance(model, fedrec.Recommender), model.fixed_rounds
        (True, 1)
    """

    #: Its name, that of its configuration.
    kind: ClassVar[str]
    config_class: ClassVar[type[RecommenderConfig]]
    #: Values of a small configuration that trains in about a second; contract tests and examples use it.
    small: ClassVar[Mapping[str, Any]] = {}
    #: True if one model can be kept for each cluster of users: no public features, and the same start for all.
    clusterable: ClassVar[bool] = False
    #: How many passes over all users give the final model (counts and closed forms); None: as many as asked for.
    fixed_rounds: ClassVar[int | None] = None
    #: True if the serving form gives the same scores; False if it folds users in by another way, which nearly keeps
    #: their order.
    serves_exactly: ClassVar[bool] = True
    #: True if a round is one step of gradient descent, to which every parameter's noise is added; sums of counts and
    #: sufficient statistics concentrate their signal in few values and bear more noise.
    gradient_rounds: ClassVar[bool] = False
    #: True if a round is one sweep of the centralised algorithm, so that both need equally many.
    round_is_sweep: ClassVar[bool] = False
    #: True if a chunk costs as much as its longest history times its users, so that like should lie beside like.
    sorts_by_length: ClassVar[bool] = False
    #: How many users `compute_updates` likes to get at once (so that a chunk stays in the cache).
    chunk_users: ClassVar[int] = 256
    #: How many interactions they have together at most, where work grows with these.
    chunk_entries: ClassVar[int] = 200_000

    def __init__(self, config: RecommenderConfig) -> None:
        self.config = config

    def chunk_like(self, other: Recommender) -> None:
        """Take users in the pieces that another model likes, around which this one is built."""
        vars(self).update(
            sorts_by_length=other.sorts_by_length,
            chunk_users=other.chunk_users,
            chunk_entries=other.chunk_entries,
        )

    @property
    def needs(self) -> DataNeeds:
        """What it reads beside who had which item."""
        return DataNeeds()

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages beyond numpy that an update cannot be computed without; a device without them does not train."""
        return ()

    def conflicts(self, sending: Sending) -> list[str]:
        """Why it cannot be trained in this way, in words for the user; empty: it can."""
        found = []
        if self.fixed_rounds is not None and sending.sampling_rate < 1.0:
            found.append(
                f"federation.sampling_rate is {sending.sampling_rate}: model {self.kind!r} takes its rounds with "
                "everyone; set it to 1"
            )
        if sending.compressed and not self.gradient_rounds:
            found.append(
                f"federation.compression is set and model {self.kind!r} sends exact sums, not gradients: each of "
                "them is needed; drop it"
            )
        return found

    def size_conflicts(self, n_users: int, n_items: int) -> list[str]:
        """Why it was configured for data of other sizes, in words for the user; empty: it was not."""
        return []

    def init_server(self, shared: State) -> State:
        """State of the server that is not broadcast (moments of the optimiser)."""
        return {}

    def init_local(self, users: IntArray, seed: int) -> State:
        """Personal state of the given user keys, every array [U, ...]; a function of (seed, user) only."""
        return {}

    def noise_schedule(self, rounds: int) -> tuple[float, ...]:
        """Relative noise of each round, for those who add noise: a round that matters more asks for less."""
        return (1.0,) * rounds

    @abstractmethod
    def layout(self, n_items: int, round_: int = 1) -> Layout:
        """What one user sends in a round: names and shapes of the blocks, whose sizes may depend on I."""

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:
        """Shared state before the first round; nothing, unless training starts from values.

        Args:
            n_items: I.
            seed: of the initial values.
            features: [I, F] what is publicly known of the items; models that can use them keep them as a constant.
        """
        return {}

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:
        """Sorted rows of the shared item tables that `compute_updates` reads; everything else may be absent.

        All rows, unless a model knows better.
        """
        return np.arange(n_items)

    @abstractmethod
    def compute_updates(
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        """Each user's update and new local state; a pure function of the rows it touches, per user independent.

        Args:
            shared: the broadcast state.
            local: arrays [U, ...] of the users of the batch.
            batch: their histories.
            key: seed and round.
            n_items: I.
        """

    @abstractmethod
    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        """New shared and server state after one round's sum."""

    def fold_in(self, shared: State, batch: UserBatch) -> State:
        """Local state of users who took no part in training, from their histories alone, every array [U, ...]."""
        return {}

    @abstractmethod
    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:
        """[U, I] higher is better; seen items are not masked here."""

    def fit(
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        """The centralised baseline: shared state and local state of all users, trained where all data lies.

        By update, sum and apply, which *is* the centralised algorithm where every round takes all users and sums
        exactly; models that are trained by gradients give another one.

        Args:
            train: interactions of U users with I items.
            seed: of the initial values.
            rounds: taken by models that do not fix their own number.
            features: [I, F] public features of the items.
        """
        batch, shared = train.batch(np.arange(train.n_users)), self.init_shared(train.n_items, seed, features)
        server, local = self.init_server(shared), self.init_local(batch.user, seed)
        for number in range(1, 1 + (self.fixed_rounds or rounds)):
            updates, local = self.compute_updates(
                shared, local, batch, RoundSeed(seed, number), train.n_items
            )
            total = UpdateSum(self.layout(train.n_items, number).zeros(), len(batch))
            updates.add_into(total.blocks, np.ones(len(batch)))
            shared, server = self.apply(shared, server, total)
        return shared, local

    def serving_refusal(self) -> str | None:
        """Why it cannot serve on a device; None: it can."""
        if type(self).serving is not Recommender.serving:
            return None
        return f"a model of kind {self.kind!r} cannot serve on a device: train one of another kind"

    def serving(self, shared: State) -> ServingForm:
        """What a device scores with, without torch or scipy: the same scores from the own history.

        Raises:
            ConfigError: it cannot serve on a device (`serving_refusal`).
        """
        raise ConfigError(self.serving_refusal() or f"a model of kind {self.kind!r} does not serve")
