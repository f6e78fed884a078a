"""CPU time of two checkouts in paired runs: is one slower than the other?

    python -m benchmarks.paired FIRST SECOND [--pairs 9] [--workloads mf,sasrec,secagg,recommend]

FIRST and SECOND are folders with checkouts of this repository, of any two commits. Each pair is two fresh processes,
one for each checkout, in alternating order, so that a busy machine disturbs both alike. A process sets a workload up
by the benchmarks of its own checkout, works once without counting, and tells the least CPU seconds (user plus system,
one thread) of its repeats. Printed are both medians over the pairs, the ratio of the medians (second / first) and its
95 % interval by bootstrap over the pairs.

* mf: one round of matrix factorisation by the compiled kernel, 300 users of the shape of MovieLens 1M, clipped;
* sasrec: one round of SASRec, 24 users, clipped;
* secagg: one device through all stages of secure aggregation, 25,000 values of 32 bits, 20 neighbours;
* recommend: a list of 20 of 100,000 items by `Client.recommend`, 200 events.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
PLACES = (".", "server", "client", "client/examples", "simulations")
DRAWS, LEVEL = 4000, 95
Seconds = float


# Workloads; nothing of ours is imported outside of them -----------------------------------------------------


def mf() -> Seconds:
    """One round of MF, compiled."""
    from benchmarks.training_speed import _round
    from benchmarks.workload import N_ITEMS, SEED, cohort, recommender

    model, batch = recommender(), cohort(300)
    return _least(_round(model, model.init_shared(N_ITEMS, SEED), batch), 15)


def sasrec() -> Seconds:
    """One round of SASRec."""
    from benchmarks import neural_speed

    model = neural_speed.build(neural_speed.parse(neural_speed.MODELS["SASRec"]))
    users = neural_speed.cohort(24)
    return len(users) / neural_speed.users_per_cpu_second(model, users, 5)


def secagg() -> Seconds:
    """One device's part in a sum."""
    from benchmarks.secure_aggregation import Measured

    return min(Measured(21, 32, 25_000).client_ms for _ in range(8)) / 1e3


def recommend() -> Seconds:
    """One list of the SDK."""
    import logging

    from benchmarks import device

    logging.disable(logging.WARNING)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(100_000, device.SIZE)).astype(np.float32) / 8
    items = device.Items.of([f"tt{k}" for k in range(len(table))], popularity=rng.random(len(table)))
    service = device.FakeService()
    service.publish(device.Factors(device.FloatTable(table), device.Ridge(0.1, 0.01)), items)
    with tempfile.TemporaryDirectory() as folder, device.opened(Path(folder), service) as client:
        client.check_for_update()
        for k in rng.choice(len(table), device.SEEN, replace=False):
            client.log_event("play", item=f"tt{k}")
        fifty = _least(lambda: [client.recommend(20) for _ in range(50)], 8)
    service.end()
    return fifty / 50


WORKLOADS: dict[str, Callable[[], Seconds]] = {
    "mf": mf,
    "sasrec": sasrec,
    "secagg": secagg,
    "recommend": recommend,
}


def _least(work: Callable[[], object], repeats: int) -> Seconds:
    """Least CPU seconds of the repeats, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


# Pairs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """CPU seconds of one workload.

    Attributes:
        first, second: of each pair.
    """

    first: list[Seconds]
    second: list[Seconds]

    @property
    def ratio(self) -> float:
        """Median of the second by median of the first."""
        return statistics.median(self.second) / statistics.median(self.first)

    def interval(self) -> tuple[float, float]:
        """95 % of the ratio, by bootstrap over the pairs."""
        drawn = np.random.default_rng(0).integers(0, len(self.first), (DRAWS, len(self.first)))
        ratios = np.median(np.array(self.second)[drawn], axis=1) / np.median(
            np.array(self.first)[drawn], axis=1
        )
        low, high = np.percentile(ratios, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        return float(low), float(high)


def compare(workload: str, first: Path, second: Path, pairs: int) -> Comparison:
    """Paired runs of one workload, the order changing from pair to pair."""
    found = Comparison([], [])
    for number in range(pairs):
        sides = [(first, found.first), (second, found.second)]
        for root, times in sides if number % 2 == 0 else reversed(sides):
            times.append(measured(workload, root))
    return found


def measured(workload: str, root: Path) -> Seconds:
    """CPU seconds of a workload in a process of its own, by the modules of one checkout."""
    path = os.pathsep.join(str(root / place) for place in PLACES)
    command = [sys.executable, "-P", __file__, "--measure", workload]
    env = os.environ | THREADS | QUIET | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=root, env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {workload} in {root} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The table, or one measurement where a process of this program asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, nargs="?")
    parser.add_argument("second", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--measure", choices=list(WORKLOADS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(WORKLOADS[chosen.measure]()))
        return
    if chosen.first is None or chosen.second is None:
        parser.error("give the folders of two checkouts")
    print(
        f"{'CPU ms, medians of ' + str(chosen.pairs) + ' pairs':30}{'first':>10}{'second':>10}{'ratio':>8}  95 %"
    )
    for workload in chosen.workloads.split(","):
        found = compare(workload, chosen.first.resolve(), chosen.second.resolve(), chosen.pairs)
        low, high = found.interval()
        medians = [1e3 * statistics.median(times) for times in (found.first, found.second)]
        print(
            f"{workload:30}{medians[0]:10.3f}{medians[1]:10.3f}{found.ratio:8.3f}  {low:.3f} to {high:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
