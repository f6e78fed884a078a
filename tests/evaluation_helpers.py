"""Small builders that the evaluation tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedrec.core.interactions import UserBatch


def batch(histories: Sequence[Sequence[int]], users: Sequence[int] | None = None) -> UserBatch:
    """A batch from lists of items; user keys 0.. unless given."""
    indptr = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    keys = np.arange(len(histories)) if users is None else np.asarray(users)
    return UserBatch(keys.astype(np.int64), indptr, items, np.ones(len(items), dtype=np.float32))


def random_case(
    seed: int, n_users: int, n_items: int, max_held: int = 3, max_seen: int = 12, levels: int | None = None
) -> tuple[np.ndarray, UserBatch, UserBatch]:
    """Scores (with ties if `levels` is given), disjoint histories and held-out items (some have none)."""
    rng = np.random.default_rng(seed)
    seen, held = [], []
    for _ in range(n_users):
        items = rng.permutation(n_items)
        a, b = int(rng.integers(0, max_seen + 1)), int(rng.integers(0, max_held + 1))
        seen.append(items[:a].tolist())
        held.append(items[a : a + b].tolist())
    scores = rng.random((n_users, n_items)) if levels is None else rng.integers(0, levels, (n_users, n_items))
    return scores.astype(np.float32), batch(seen), batch(held)
