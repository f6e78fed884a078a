"""What user-level privacy costs in time: clipping, noise, noise shares, beside the same round without any of it.

    python -m benchmarks.privacy_cost

Setting: ML-1M's shape (6,040 users, 3,706 items). A round is computing every user's update, summing, and the server's
step. The round without privacy does not even look at the norms. Variants take turns in one process with one thread;
medians of the repeats, in CPU seconds. Limit: 15 % for clipping and central noise with matrix factorisation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.workload import N_ITEMS, SEED, ml1m_shape, recommender
from fedrec.core.contributions import distinct
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import UpdateSum
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings, Trust
from fedrec.recommenders.closed_form.ials import Ials, IalsConfig
from fedrec.recommenders.private.dp_ease import DpEase, DpEaseConfig
from fedrec.rounds.chain import train_users

REPEATS = 9
LIMIT = 0.15
Work = Callable[[], object]


def variants(model: Recommender, batch: UserBatch, round_: int) -> dict[str, Work]:
    """One round of a model: without privacy, clipped, and with each mechanism."""
    shared, key = _shared(model, batch, round_), RoundSeed(SEED, round_)
    local, server = model.init_local(batch.user, SEED), model.init_server(shared)
    layout = model.layout(N_ITEMS, round_)

    def plain() -> object:
        total = UpdateSum(layout.zeros())
        with one_blas_thread():
            for where, chunk in batch.chunks(model.chunk_entries, model.chunk_users):
                mine = {name: values[where] for name, values in local.items()}
                updates, _ = model.compute_updates(shared, mine, chunk, key, N_ITEMS)
                updates.add_into(total.blocks, np.ones(len(chunk)))
        total.users = float(len(batch))
        return model.apply(shared, server, total)

    def clipped() -> object:
        total, _ = train_users(model, shared, local, batch, key, 1.0, N_ITEMS)
        return model.apply(shared, server, total)

    def private(trust: Trust) -> Work:
        plan = _plan(layout.size, len(batch), trust)
        mechanism = mechanism_of(plan)

        def work() -> object:
            noise, users = NoiseSource(), len(batch)
            # As a node does: an item that is twice in a history would escape the bound.
            total, _ = train_users(model, shared, local, distinct(batch), key, 1.0, N_ITEMS)
            sent = mechanism.contribute(layout.flatten(total.blocks), users, 1, 1.0, noise)
            sent = mechanism.add(mechanism.zero(layout.size), sent)
            flat = mechanism.release(sent, users, 1, 1.0, noise)
            blocks = {name: np.asarray(b, np.float64) for name, b in layout.unflatten(flat).items()}
            released = UpdateSum(blocks, plan.denominator, noise_std=plan.noise_std(1))
            return model.apply(shared, server, released)

        return work

    return {
        "no privacy": plain,
        "clipped": clipped,
        "clipped, central noise": private("central"),
        "clipped, noise shares": private("distributed"),
    }


def medians(works: dict[str, Work], repeats: int = REPEATS) -> dict[str, float]:
    """Median CPU seconds of each, taking turns; the first turn, which compiles or loads, does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if turn:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def noise_seconds(size: int) -> float:
    """Median CPU seconds of one vector of normal noise."""
    source = NoiseSource()
    return medians({"noise": lambda: source.normal(size, 1.0)})["noise"]


def _shared(model: Recommender, batch: UserBatch, round_: int) -> dict[str, np.ndarray]:
    shared, server = model.init_shared(N_ITEMS, SEED), {}
    for number in range(1, round_):
        total, _ = train_users(model, shared, {}, batch, RoundSeed(SEED, number), None, N_ITEMS)
        shared, server = model.apply(shared, server, total)
    return shared


def _plan(parameters: int, users: int, trust: Trust) -> PrivacyPlan:
    settings = PrivacySettings(unit="user", trust=trust, epsilon=8.0, force=True)
    return make_plan(settings, population=users, rounds=1, schedule=(1.0,), parameters=parameters)


def main() -> None:
    batch = ml1m_shape()
    cases: list[tuple[str, Recommender, int]] = [
        ("MF, d = 64, compiled", recommender("compiled"), 1),
        ("iALS, d = 16", Ials(IalsConfig(embedding_size=16)), 1),
        ("DP EASE, 1000 items, round 2", DpEase(DpEaseConfig(top_items=1000)), 2),
    ]
    print(f"ML-1M shape: {len(batch):,} users, {N_ITEMS:,} items, {len(batch.item):,} interactions\n")
    for name, model, round_ in cases:
        size = model.layout(N_ITEMS, round_).size
        found = medians(variants(model, batch, round_))
        base = found["no privacy"]
        print(f"{name}: {size:,} values; one vector of noise {1e3 * noise_seconds(size):.1f} ms")
        for variant, seconds in found.items():
            print(f"  {variant:26} {1e3 * seconds:9.1f} ms  {100 * (seconds / base - 1):+6.1f} %")
        if name.startswith("MF"):
            kept = found["clipped, central noise"] / base - 1 <= LIMIT
            print(f"  limit of {100 * LIMIT:.0f} %: {'kept' if kept else 'MISSED'}")
        print()


if __name__ == "__main__":
    main()
