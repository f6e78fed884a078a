"""Which items a held-out item is ranked against in the sampled protocol.

The draw is a function of (seed, user key, what the user has seen, what is held out) alone: it is the same on
every engine and in every batch, and fixed over the rounds. It is made here, when a user is evaluated, from a
stream that training never reads, and its result is never stored: training cannot know the candidates.

Letters: U users, I items, n candidates.
Sampled metrics are not estimates of full ones (Krichene and Rendle 2020, "On sampled metrics for item
recommendation", KDD); they are here for comparison with papers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.randomness import U64, Purpose, bits, key, user_keys

#: Draws per wanted candidate; a user who needs more (small catalogue, long history) takes the exact path.
DRAWS_PER_CANDIDATE = 2
EXTRA_DRAWS = 32


def not_candidates(history: UserBatch, target: UserBatch, n_items: int) -> NDArray[np.bool_]:
    """[U, I] the items that a held-out item is never ranked against: seen ones and other held-out ones."""
    out = np.zeros((len(history), n_items), dtype=np.bool_)
    out[history.row, history.item] = True
    out[target.row, target.item] = True
    return out


def draw_candidates(users: IntArray, forbidden: NDArray[np.bool_], n: int, seed: int) -> IntArray:
    """[U, n] different items of each user outside `forbidden`, uniformly without replacement.

    Args:
        users: [U] user keys.
        forbidden: [U, I] as `not_candidates` gives it.
        n: wanted candidates per user.
        seed: root of the run's randomness.

    A user with fewer than n allowed items gets all of them, and -1 behind.
    """
    keys = user_keys(key(seed, Purpose.CANDIDATE), users)
    out = np.full((len(users), n), -1, dtype=np.int64)
    accepted, items = _first_draws(keys, forbidden, n)
    enough = accepted.sum(axis=1) >= n
    picked = accepted & (np.cumsum(accepted, axis=1) <= n) & enough[:, None]
    out[enough] = items[picked].reshape(-1, n)
    for row in np.flatnonzero(~enough):
        out[row] = _exact_draw(keys[row], forbidden[row], n)
    return out


def _first_draws(keys: U64, forbidden: NDArray[np.bool_], n: int) -> tuple[NDArray[np.bool_], IntArray]:
    """[U, m] independent draws of items, and which of them are allowed and drawn for the first time."""
    m, n_items = DRAWS_PER_CANDIDATE * n + EXTRA_DRAWS, forbidden.shape[1]
    # A product of 32 random bits instead of a remainder: its bias is below I / 2^32.
    items = ((bits(keys, m) >> np.uint64(32)) * np.uint64(n_items) >> np.uint64(32)).astype(np.int64)
    ordered = np.sort(items * m + np.arange(m), axis=1)
    repeated = np.zeros(items.shape, dtype=np.bool_)
    again = np.diff(ordered // m, axis=1) == 0
    rows, where = np.nonzero(again)
    repeated[rows, ordered[rows, where + 1] % m] = True
    return ~repeated & ~np.take_along_axis(forbidden, items, axis=1), items


def _exact_draw(user_key: np.uint64, forbidden: NDArray[np.bool_], n: int) -> IntArray:
    """[n] the n allowed items with the smallest hash, in that order; -1 where there are fewer."""
    # Item numbers are absorbed into a key of its own, so that this stream is independent of `_first_draws`.
    own = user_keys(user_key, np.array([len(forbidden)], dtype=np.int64))
    hashes = bits(own, len(forbidden))[0]
    allowed = np.flatnonzero(~forbidden)
    picked = allowed[np.argsort(hashes[allowed], kind="stable")][:n]
    return np.concatenate([picked, np.full(n - len(picked), -1, dtype=np.int64)])
