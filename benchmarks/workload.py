"""The workload of all speed benchmarks: users, items and history lengths of the shape of MovieLens 1M, made up.

6,040 users, about 163 interactions each (median near 93, 20 to 1,853), item popularity by Zipf and Mandelbrot.
The cohort is the first 1,000 of them; every engine trains the same users on the same examples.
"""

from __future__ import annotations

import numpy as np

from fedrec.core.interactions import UserBatch
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig

COHORT, N_ITEMS, SEED = 1000, 3706, 0
EMBEDDING_SIZE, NEGATIVES, MINIBATCH, LEARNING_RATE, REG = 64, 4, 64, 0.05, 0.01


def recommender(backend: str = "compiled") -> MatrixFactorisation:
    """MF as every engine here trains it: BCE, one local epoch of plain SGD."""
    return MatrixFactorisation(
        MfConfig(
            embedding_size=EMBEDDING_SIZE,
            negatives=NEGATIVES,
            batch_size=MINIBATCH,
            learning_rate=LEARNING_RATE,
            reg=REG,
            backend=backend,
        )
    )


def cohort(size: int = COHORT) -> UserBatch:
    """The histories of the first `size` users."""
    return ml1m_shape().take(np.arange(size))


def ml1m_shape(n_users: int = 6040, n_items: int = N_ITEMS, seed: int = SEED) -> UserBatch:
    """Histories of `n_users` users over `n_items` items, no item twice in one history."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(93), 1.05, n_users)), 20, 1853).astype(np.int64)
    weight = 1.0 / (np.arange(min(n_items, N_ITEMS)) + 30.0)
    cumulative = np.cumsum(weight / weight.sum())
    spread = max(1, n_items // N_ITEMS)
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
