"""The least time in which this machine could train one user, whatever the program.

Each row that a user touches must be read, and read and written in the sum (float32); each example needs three
vector products (score, two gradients). Bandwidth and arithmetic are measured here, in the cache and on one core,
so the bound is one that no implementation of this algorithm reaches (Williams et al. 2009, "Roofline", CACM).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy.linalg import blas

from benchmarks.workload import EMBEDDING_SIZE, N_ITEMS, NEGATIVES, SEED
from fedrec.core.interactions import UserBatch
from fedrec.neural.views import build_views

_VALUES, _SIDE = 1 << 20, 768
#: How long each is tried: the best of many, because others use the machine, too.
_TRY_SECONDS = 0.5


def seconds_per_user(batch: UserBatch) -> float:
    """CPU seconds of one core for one user of the batch, the larger of memory and arithmetic."""
    rows = len(build_views(batch, SEED, 1, N_ITEMS, NEGATIVES, 1).row) / len(batch)
    examples = len(batch.item) * (1 + NEGATIVES) / len(batch)
    moved = 3 * rows * EMBEDDING_SIZE * 4
    return max(moved / bytes_per_second(), 6 * EMBEDDING_SIZE * examples / operations_per_second())


def bytes_per_second() -> float:
    """Best bandwidth of y += a x on two arrays of 4 MB."""
    x, y = np.ones(_VALUES, dtype=np.float32), np.ones(_VALUES, dtype=np.float32)
    return 3 * x.nbytes / _best(lambda: blas.saxpy(x, y, a=0.5))


def operations_per_second() -> float:
    """Best rate of a float32 matrix product."""
    a = np.ones((_SIDE, _SIDE), dtype=np.float32)
    return 2 * _SIDE**3 / _best(lambda: a @ a)


def _best(work: Callable[[], object]) -> float:
    times: list[float] = []
    end = time.perf_counter() + _TRY_SECONDS
    while (started := time.perf_counter()) < end:
        work()
        times.append(time.perf_counter() - started)
    return min(times)
