"""Users trained per CPU-second: compiled kernel, generic batched path, and the growth with the catalogue.

    python -m benchmarks.training_speed            # ours alone, and the memory roofline
    python -m benchmarks                           # beside Flower's engine with one node per user

Setting: MF with d = 64, 4 negatives, 1 epoch, minibatches of 64 positives, a cohort of 1,000 users, clipped to
norm 1; sampling of negatives, training, clipping and summing are all included. CPU seconds are user plus system
time of the process, one thread; the best of the repeats is given.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

from benchmarks.workload import ml1m_shape
from fedrec.data.interactions import UserBatch
from fedrec.learning.local_training import train_users
from fedrec.models.base import RoundKey
from fedrec.models.mf import MatrixFactorisation, MfConfig

COHORT, D = 1000, 64
#: Bytes per user that any engine must move: each touched row read, and read and written in the sum (float32).
ROOFLINE_SECONDS = 4e-6


def cpu_seconds(recommender: MatrixFactorisation, batch: UserBatch, n_items: int, repeats: int) -> float:
    """Best CPU seconds of one round."""
    shared, local = recommender.init_shared(n_items, 0), recommender.init_local(batch.user, 0)
    best = np.inf
    for number in range(1, repeats + 2):
        started = time.process_time()
        train_users(recommender, shared, local, batch, RoundKey(0, number), 1.0, n_items)
        if number > 1:  # the first round compiles
            best = min(best, time.process_time() - started)
    return best


def users_per_cpu_second(backend: str, repeats: int) -> float:
    """Throughput of one backend on the standard cohort."""
    batch = ml1m_shape().take(np.arange(COHORT))
    recommender = MatrixFactorisation(MfConfig(embedding_size=D, backend=backend))
    return COHORT / cpu_seconds(recommender, batch, 3706, repeats)


def growth() -> list[tuple[int, float, float]]:
    """(items, marginal microseconds per user, fixed milliseconds per round) of the compiled path."""
    rows = []
    recommender = MatrixFactorisation(MfConfig(embedding_size=D))
    for n_items in (10_000, 100_000, 1_000_000):
        batch = ml1m_shape(COHORT, n_items)
        nobody = batch.take(np.zeros(0, dtype=np.int64))
        fixed = cpu_seconds(recommender, nobody, n_items, 3)
        whole = cpu_seconds(recommender, batch, n_items, 3)
        half = cpu_seconds(recommender, batch.take(np.arange(COHORT // 2)), n_items, 3)
        rows.append((n_items, 1e6 * (whole - half) / (COHORT - COHORT // 2), 1e3 * fixed))
    return rows


def main() -> None:
    import torch

    torch.set_num_threads(1)
    compiled, generic = users_per_cpu_second("compiled", 5), users_per_cpu_second("torch", 3)
    print(f"compiled kernel   {compiled:9,.0f} users per CPU-second  (target 10,000)")
    print(f"generic batched   {generic:9,.0f} users per CPU-second  (target 1,000)")
    print(
        f"compiled / roofline of {1 / ROOFLINE_SECONDS:,.0f} per core: 1/{1 / ROOFLINE_SECONDS / compiled:.0f}"
    )
    print("items       microseconds per user   fixed per round")
    for n_items, per_user, fixed in growth():
        print(f"{n_items:9,} {per_user:17.0f} us {fixed:17.1f} ms")


if __name__ == "__main__":
    main()
