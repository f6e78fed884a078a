"""Planted data: small, seeded, with a structure that a recommender can find.

Letters: U users, I items, F width of public features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import Interactions
from fedrec.data.split import Split


def planted(n_users: int = 120, n_items: int = 60, groups: int = 4, seed: int = 0) -> Interactions:
    """Users of group g like items of group g: 90 % of each history; lengths 6 to 20, no item twice.

    The group of user u is u % groups, that of item i is i % groups.
    """
    rng = np.random.default_rng(seed)
    users, items = [], []
    for user in range(n_users):
        likes = np.flatnonzero(np.arange(n_items) % groups == user % groups)
        others = np.setdiff1d(np.arange(n_items), likes)
        length = int(rng.integers(6, min(20, len(likes)) + 1))
        own = rng.choice(likes, max(3, round(0.9 * length)), replace=False)
        noise = rng.choice(others, length - len(own), replace=False)
        history = rng.permutation(np.concatenate([own, noise]))
        users += [user] * len(history)
        items += history.tolist()
    return Interactions.from_columns(
        np.array(users),
        np.array([f"i{k:03d}" for k in items]),
        item_ids=np.array([f"i{k:03d}" for k in range(n_items)]),
    )


def planted_features(n_items: int = 60, groups: int = 4, width: int = 12) -> NDArray[np.float32]:
    """[I, F] public features from which the group of a planted item can be told, under noise."""
    rng = np.random.default_rng(7)
    which = np.arange(n_items) % groups
    centres, noise = rng.normal(size=(groups, width)), rng.normal(size=(n_items, width))
    return (centres[which] + 0.3 * noise).astype(np.float32)


def last_out(interactions: Interactions) -> Split:
    """The last interaction of each user is the test part, the last but one the validation part."""
    age = interactions.batch(np.arange(interactions.n_users)).age
    return Split(interactions.select(age > 1), interactions.select(age == 1), interactions.select(age == 0))
