"""Users trained per CPU-second: compiled kernel, generic batched path, and the growth with the catalogue.

    python -m benchmarks.training_speed            # ours alone
    python -m benchmarks                           # beside Flower's engine with one node per user

Setting: MF with d = 64, 4 negatives, 1 epoch, minibatches of 64 positives, a cohort of 1,000 users, clipped to
norm 1; sampling of negatives, training, clipping and summing are all included. CPU seconds are user plus system
time of the process, one thread; the best of the repeats is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.workload import COHORT, N_ITEMS, SEED, cohort, ml1m_shape, recommender
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.recommenders.collaborative.mf import MatrixFactorisation
from fedrec.rounds.chain import train_users

Backend = Literal["compiled", "torch"]
CLIP_NORM = 1.0
CATALOGUES = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Growth:
    """Cost of one more user, and of the server's step once per round, at a size of the catalogue."""

    items: int
    microseconds_per_user: float
    server_step_milliseconds: float


def users_per_cpu_second(backend: Backend, repeats: int, size: int = COHORT) -> float:
    """Throughput of one backend on the standard cohort."""
    model, batch = recommender(backend), cohort(size)
    shared = model.init_shared(N_ITEMS, SEED)
    return size / _best(_round(model, shared, batch), repeats)


def growth(items: int, size: int = COHORT) -> Growth:
    """Cost at one size of the catalogue, of the compiled path.

    The cost of a user is the difference between a round of all users and one of half of them, so what a round
    costs once is not in it.
    """
    model, batch = recommender(), ml1m_shape(size, items)
    shared = model.init_shared(items, SEED)
    whole = _best(_round(model, shared, batch), 3)
    half = _best(_round(model, shared, batch.take(np.arange(size // 2))), 3)
    return Growth(items, 1e6 * (whole - half) / (size - size // 2), 1e3 * _server_step(model, shared, batch))


def _round(model: MatrixFactorisation, shared: State, batch: UserBatch) -> Callable[[], object]:
    local = model.init_local(batch.user, SEED)
    n_items = len(shared["item_bias"])
    return lambda: train_users(model, shared, local, batch, RoundSeed(SEED, 1), CLIP_NORM, n_items)


def _server_step(model: MatrixFactorisation, shared: State, batch: UserBatch) -> float:
    few, server = batch.take(np.arange(10)), model.init_server(shared)
    local, n_items = model.init_local(few.user, SEED), len(shared["item_bias"])
    total, _ = train_users(model, shared, local, few, RoundSeed(SEED, 1), CLIP_NORM, n_items)
    return _best(lambda: model.apply(shared, server, total), 2)


def _best(work: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of the repeats; the first, which compiles or loads, is not among them."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def print_growth(rows: list[Growth]) -> None:
    """The growth table, with the flatness ratio below it."""
    print(f"{'items':>10} {'per user':>10} {'server step, once per round':>29}")
    for row in rows:
        print(f"{row.items:10,} {row.microseconds_per_user:7.0f} us {row.server_step_milliseconds:26,.0f} ms")
    first, last = rows[0], rows[-1]
    ratio = last.microseconds_per_user / first.microseconds_per_user
    print(f"{last.items // first.items}x the catalogue costs {ratio:.1f}x per user")


def main() -> None:
    print(f"compiled kernel   {users_per_cpu_second('compiled', 20):9,.0f} users per CPU-second")
    print(f"generic batched   {users_per_cpu_second('torch', 5):9,.0f} users per CPU-second\n")
    print_growth([growth(items) for items in CATALOGUES])


if __name__ == "__main__":
    main()
