"""The workload of all speed benchmarks: users, items and history lengths of the shape of MovieLens 1M, made up.

6,040 users, about 163 interactions each (median near 93, 20 to 1,853), item popularity by Zipf and Mandelbrot.
"""

from __future__ import annotations

import numpy as np

from fedrec.data.interactions import UserBatch


def ml1m_shape(n_users: int = 6040, n_items: int = 3706, seed: int = 0) -> UserBatch:
    """Histories of `n_users` users over `n_items` items, no item twice in one history."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(93), 1.05, n_users)), 20, 1853).astype(np.int64)
    weight = 1.0 / (np.arange(min(n_items, 3706)) + 30.0)
    cumulative = np.cumsum(weight / weight.sum())
    spread = max(1, n_items // 3706)
    histories = []
    for length in lengths:
        drawn: np.ndarray = np.zeros(0, dtype=np.int64)
        while len(drawn) < length:
            more = np.searchsorted(cumulative, rng.random(3 * length)) * spread + rng.integers(
                0, spread, 3 * length
            )
            drawn = np.unique(np.concatenate([drawn, more]))
        histories.append(rng.permutation(drawn)[:length])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    item = np.concatenate(histories).astype(np.int64)
    return UserBatch(np.arange(n_users, dtype=np.int64), indptr, item, np.ones(len(item), dtype=np.float32))
