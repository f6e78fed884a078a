"""The one contract behind which every recommender lives.

A recommender is pure: it holds a frozen configuration and no data. What is common to all users is the
*shared* state (it is broadcast); what is personal is *local* state (it never leaves the device); a user's
update is a function of both and of the user's own history, and the server only ever sees sums of updates.

Letters: U users, I items, d embedding size, N interactions of a batch.
Out of scope: clipping, noise, aggregation, transport, evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.updates import Layout, State, Updates, UpdateSum

Scores = NDArray[np.float32]


class RecommenderConfig(BaseModel):
    """Base of every recommender's configuration: frozen, unknown keys refused.

    Example:
        >>> import fedrec
        >>> experiment = fedrec.load_experiment("movietweetings-ease")
        >>> isinstance(experiment.model, fedrec.RecommenderConfig), experiment.model.kind
        (True, 'ease')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class RoundSeed:
    """Where the randomness of one round comes from."""

    seed: int
    round: int


class Recommender(ABC):
    """One recommender, federated and centralised from the same code.

    Example:
        >>> import fedrec
        >>> from fedrec.recommenders.registry import build
        >>> model = build(fedrec.load_experiment("movietweetings-ease").model)
        >>> isinstance(model, fedrec.Recommender), model.fixed_rounds
        (True, 1)
    """

    kind: ClassVar[str]
    #: How many passes over all users give the final model (counts and closed forms); None: as many as asked for.
    fixed_rounds: ClassVar[int | None] = None
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

    def chunk_like(self, other: Recommender) -> None:
        """Take users in the pieces that another model likes, around which this one is built."""
        vars(self).update(
            sorts_by_length=other.sorts_by_length,
            chunk_users=other.chunk_users,
            chunk_entries=other.chunk_entries,
        )

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
        """What one user sends in a round."""

    @abstractmethod
    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:
        """Shared state before the first round.

        Args:
            n_items: I.
            seed: of the initial values.
            features: [I, F] what is publicly known of the items; models that can use them keep them as a constant.
        """

    @abstractmethod
    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:
        """Sorted rows of the shared item tables that `compute_updates` reads; everything else may be absent."""

    @abstractmethod
    def compute_updates(
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed
    ) -> tuple[Updates, State]:
        """Each user's update and new local state; a pure function of the rows it touches, per user independent."""

    @abstractmethod
    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        """New shared and server state after one round's sum."""

    @abstractmethod
    def fold_in(self, shared: State, batch: UserBatch) -> State:
        """Local state of users who took no part in training, from their histories alone."""

    @abstractmethod
    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:
        """[U, I] higher is better; seen items are not masked here."""

    @abstractmethod
    def fit(
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        """The centralised baseline: shared state and local state of all users, trained where all data lies."""
