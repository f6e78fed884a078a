"""One round for many users: updates are computed, clipped and summed chunk by chunk, as they are made.

This is the only path from a history to a sum; a phone runs it with one user, a simulation with thousands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, key, uniform, user_keys
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.stage import Noise, UserStages
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import State, UpdateSum


def in_cohort(users: NDArray[np.int64], sampling_rate: float, round_key: RoundSeed) -> NDArray[np.bool_]:
    """[U] who takes part: an independent coin with probability `sampling_rate` per user and round (Poisson)."""
    base = key(round_key.seed, Purpose.COHORT, round_key.round)
    return np.asarray(uniform(user_keys(base, users), 1)[:, 0] < sampling_rate)


def in_turn(users: NDArray[np.int64], sampling_rate: float, round_key: RoundSeed) -> NDArray[np.bool_]:
    """[U] whose turn it is: everyone's comes once in each pass of 1/`sampling_rate` rounds (rounded).

    A user's place in a pass is drawn by a hash, so no list of users is needed to shuffle them.
    """
    rounds = max(1, round(1 / sampling_rate))
    pass_, place = divmod(round_key.round - 1, rounds)
    base = key(round_key.seed, Purpose.TURN, pass_)
    return np.asarray(np.floor(uniform(user_keys(base, users), 1)[:, 0] * rounds) == place)


class Cohort(Protocol):
    """Who takes part in a round."""

    def joins(self, batch: UserBatch, seed: RoundSeed, noise: Noise | None) -> NDArray[np.bool_]:
        """[U] who of the batch does.

        Args:
            batch: of all users of a node.
            seed: of the round's public draws.
            noise: of secret ones.
        """


@dataclass(frozen=True)
class PublicCohort:
    """Drawn from the public seed, of those users who have something to learn from.

    Attributes:
        sampling: "poisson": by an independent draw each; "shuffled": in turn.
        rate: q.
    """

    sampling: Literal["poisson", "shuffled"]
    rate: float

    def joins(self, batch: UserBatch, seed: RoundSeed, noise: Noise | None) -> NDArray[np.bool_]:
        """See `Cohort`."""
        chosen = in_turn if self.sampling == "shuffled" else in_cohort
        return np.asarray((batch.counts > 0) & chosen(batch.user, self.rate, seed))


@dataclass(frozen=True)
class AllUsers:
    """Every user in every round; without a history with a contribution of zero, as any other user would."""

    def joins(self, batch: UserBatch, seed: RoundSeed, noise: Noise | None) -> NDArray[np.bool_]:
        """See `Cohort`."""
        return np.ones(len(batch), dtype=bool)


@dataclass(frozen=True)
class SecretCohort:
    """An independent draw each: if it could be foreseen, as with a seed, sampling would amplify nothing.

    Attributes:
        rate: q.
        is_seeded: the noise is, too, so nothing is private: the cohort follows from the public seed.
    """

    rate: float
    is_seeded: bool

    def joins(self, batch: UserBatch, seed: RoundSeed, noise: Noise | None) -> NDArray[np.bool_]:
        """See `Cohort`."""
        if self.is_seeded or noise is None:
            return in_cohort(batch.user, self.rate, seed)
        return np.asarray(noise.derive("cohort").uniform(len(batch)) < self.rate)


@dataclass(frozen=True)
class CyclicCohort:
    """Groups of users take turns; within its turn, another cohort is drawn of a group.

    Which group a user is in follows from the public seed and the user's key, never from data.

    Attributes:
        cycle: the number of groups.
        within: of a group in its turn.
    """

    cycle: int
    within: Cohort

    def joins(self, batch: UserBatch, seed: RoundSeed, noise: Noise | None) -> NDArray[np.bool_]:
        """See `Cohort`."""
        draws = uniform(user_keys(key(seed.seed, Purpose.GROUP), batch.user), 1)[:, 0]
        turn = np.floor(draws * self.cycle) == (seed.round - 1) % self.cycle
        return np.asarray(turn & self.within.joins(batch, seed, noise))


@dataclass(frozen=True)
class UpdateTraining:
    """The recommender's own updates, each through the stages of the chain."""

    def train(
        self,
        recommender: Recommender,
        shared: State,
        local: State,
        batch: UserBatch,
        seed: RoundSeed,
        stages: UserStages,
    ) -> tuple[UpdateSum, State]:
        """See `LocalTraining`."""
        n_items = stages.context.n_items
        total = UpdateSum(recommender.layout(n_items, seed.round).zeros())
        after = {name: values.copy() for name, values in local.items()}
        order = np.arange(len(batch))
        if recommender.sorts_by_length:
            order = np.argsort(batch.counts, kind="stable")
            batch = batch.take(order)
        with one_blas_thread():
            for piece, chunk in batch.chunks(recommender.chunk_entries, recommender.chunk_users):
                where = order[piece]
                mine = {name: values[where] for name, values in local.items()}
                updates, changed = recommender.compute_updates(shared, mine, chunk, seed, n_items)
                stages.add(total, updates, chunk.user, where)
                for name, values in changed.items():
                    after[name][where] = values
        return total, after

    def replacement(
        self,
        recommender: Recommender,
        shared: State,
        local: State,
        batch: UserBatch,
        seed: RoundSeed,
        stages: UserStages,
    ) -> tuple[UpdateSum, State]:
        """Zero, and no change."""
        zeros = recommender.layout(stages.context.n_items, seed.round).zeros()
        return UpdateSum(zeros, users=len(batch), zeroed=len(batch)), local
