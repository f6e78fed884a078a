"""Shared pieces of the property tests: made-up histories, and settings that allow for a first compilation."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedrec.core.interactions import UserBatch

#: numba compiles in the first example, so there is no deadline for one.
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32 - 1)


def ragged(rng: np.random.Generator, n_users: int, n_items: int, longest: int) -> UserBatch:
    """Histories of 0 to `longest` different items with random values; user keys are any numbers."""
    counts = rng.integers(0, min(longest, n_items) + 1, n_users)
    item = [rng.choice(n_items, count, replace=False) for count in counts]
    return UserBatch(
        np.sort(rng.choice(10 * n_users + 10, n_users, replace=False)).astype(np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.zeros(0, dtype=np.int64), *item]),
        rng.normal(size=int(counts.sum())).astype(np.float32),
    )
