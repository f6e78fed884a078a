"""Speed in one run: our two paths beside Flower's engine with one node per user, growth, and the roofline.

    python -m benchmarks [--rounds 2] [--json FILE]

Everything is measured one after the other on the machine at hand; nothing is read from an earlier run. The setting
is that of `benchmarks.training_speed`; Flower's is described in `benchmarks.peer`. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.peer import ACTORS, PeerResult, run_peer
from benchmarks.training_speed import CATALOGUES, Growth, growth, print_growth, users_per_cpu_second
from benchmarks.workload import COHORT, EMBEDDING_SIZE, MINIBATCH, N_ITEMS, NEGATIVES, cohort
from fedrec.core.errors import FedrecError


@dataclass(frozen=True)
class Row:
    """One engine's throughput beside Flower's and beside what the machine could do at most."""

    engine: str
    users_per_cpu_second: float
    times_flower: float
    roofline_over_engine: float


def table(ours: dict[str, float], peer: PeerResult, limit: float) -> list[Row]:
    """Rows from the fastest to the slowest."""
    flower = peer.nodes / peer.cpu_seconds
    name = f"Flower {importlib.metadata.version('flwr')}, one node per user"
    rates = ours | {name: flower}
    return [Row(engine, rate, rate / flower, limit / rate) for engine, rate in rates.items()]


def print_table(rows: list[Row], peer: PeerResult, limit: float) -> None:
    """The comparison, its setting above and what it rests on below."""
    print(
        f"MF, d = {EMBEDDING_SIZE}, {NEGATIVES} negatives, 1 epoch, minibatches of {MINIBATCH}, {peer.nodes:,} users "
        f"x {N_ITEMS:,} items (ML-1M shape)\n"
    )
    print(f"{'engine':36} {'users per CPU-second':>20} {'x Flower':>9} {'below roofline':>15}")
    for row in rows:
        print(
            f"{row.engine:36} {row.users_per_cpu_second:20,.0f} {row.times_flower:9,.0f} "
            f"{row.roofline_over_engine:14,.0f}x"
        )
    print(f"{'roofline of one core':36} {limit:20,.0f}\n")
    print(
        f"Flower: {peer.nodes:,} SuperNodes, Ray with {ACTORS} actors, FedAvg, best of {peer.rounds} rounds after a "
        f"warm-up: {peer.cpu_seconds:.1f} CPU s, {peer.wall_seconds:.1f} s wall\n"
        f"(warm-up {peer.warm_up_cpu_seconds:.0f} CPU s, not counted); "
        f"largest difference between its model and ours {peer.model_difference:.1e}\n"
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed beside Flower, in one run"
    )
    parser.add_argument("--users", type=int, default=COHORT, help="users of the cohort, and nodes of Flower")
    parser.add_argument("--rounds", type=int, default=2, help="Flower's rounds after the warm-up")
    parser.add_argument("--json", type=Path, default=None, help="where to write the results, too")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the results down where asked."""
    chosen, before = options(), machine()
    torch.set_num_threads(1)
    ours = {
        "fedrec, compiled kernel": users_per_cpu_second("compiled", 20, chosen.users),
        "fedrec, generic batched path (torch)": users_per_cpu_second("torch", 5, chosen.users),
    }
    limit = 1 / roofline.seconds_per_user(cohort(chosen.users))
    sizes: list[Growth] = [growth(items, chosen.users) for items in CATALOGUES]
    peer = run_peer(chosen.users, chosen.rounds)
    rows = table(ours, peer, limit)
    print_table(rows, peer, limit)
    print_growth(sizes)
    if chosen.json is not None:
        results = {"machine": before, "roofline": limit, "flower": asdict(peer)}
        results |= {"engines": [asdict(row) for row in rows], "growth": [asdict(row) for row in sizes]}
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except FedrecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
