"""One round for many users: updates are computed, clipped and summed chunk by chunk, as they are made.

This is the only path from a history to a sum; a phone runs it with one user, a simulation with thousands.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, key, uniform, user_keys
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import State, UpdateSum
from fedrec.privacy.clipping import add_clipped
from fedrec.rounds.compression import Compressor


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


def train_users(
    recommender: Recommender,
    shared: State,
    local: State,
    batch: UserBatch,
    round_key: RoundSeed,
    clip_norm: float | None,
    n_items: int,
    *,
    compressor: Compressor | None = None,
) -> tuple[UpdateSum, State]:
    """Sum of the clipped updates of all users of the batch, and their new local state.

    Args:
        recommender: the model.
        shared: the broadcast state.
        local: arrays [U, ...] of the users of the batch.
        batch: their histories.
        round_key: seed and round.
        clip_norm: L2 bound of one user's whole update, or None.
        n_items: I.
        compressor: adds updates as the server would read them; None: whole.
    """
    total = UpdateSum(recommender.layout(n_items, round_key.round).zeros())
    after = {name: values.copy() for name, values in local.items()}
    order = np.arange(len(batch))
    if recommender.sorts_by_length:
        order = np.argsort(batch.counts, kind="stable")
        batch = batch.take(order)
    with one_blas_thread():
        for piece, chunk in batch.chunks(recommender.chunk_entries, recommender.chunk_users):
            where = order[piece]
            mine = {name: values[where] for name, values in local.items()}
            updates, changed = recommender.compute_updates(shared, mine, chunk, round_key)
            if compressor is None:
                add_clipped(total, updates, clip_norm)
            else:
                compressor.add(total, updates, where, chunk.user, clip_norm)
            for name, values in changed.items():
                after[name][where] = values
    return total, after
