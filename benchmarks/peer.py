"""Flower's simulation engine with one node per user, as the peer that our engines are compared with.

A SuperLink of its own with Ray behind it (two actors), 1,000 SuperNodes, an ordinary app (`flower_peer/`). The
first round starts Ray and fills its caches and is no part of the measurement. Afterwards the model must be the one
that our compiled engine makes of the same histories, or the comparison is refused.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.workload import N_ITEMS, SEED, cohort, recommender
from fedrec.core.errors import FederationError
from fedrec.core.processes import end, is_alive
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.rounds.chain import train_users
from fedrec_server.federation.flower_cli import last_words
from fedrec_simulations.engines.flower import simulation_superlink

ROOT = Path(__file__).parent.parent
APP = Path(__file__).parent / "flower_peer"
ACTORS = 2
RUN_SECONDS, POLL_SECONDS = 900.0, 0.5
#: float32 weights averaged in another order; a missing user shows at 2e-5 or more.
TOLERANCE = 5e-6


@dataclass(frozen=True)
class PeerResult:
    """What Flower's rounds cost after the first: best CPU and wall seconds, and the distance to our model."""

    nodes: int
    rounds: int
    cpu_seconds: float
    wall_seconds: float
    warm_up_cpu_seconds: float
    model_difference: float


def run_peer(nodes: int, rounds: int) -> PeerResult:
    """Train the first `nodes` users in one warm-up round and `rounds` measured ones.

    Raises:
        FederationError: Flower's run failed, or its model is not ours.
    """
    out = Path(tempfile.mkdtemp(prefix="fedrec-peer-"))
    try:
        _simulate(out, nodes, 1 + rounds)
        clocks = json.loads((out / "rounds.json").read_text())
        cpu, wall = (np.diff([c[name] for c in clocks]) for name in ("cpu_seconds", "wall_seconds"))
        difference = _difference(dict(np.load(out / "arrays.npz")), nodes, 1 + rounds)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    if difference > TOLERANCE:
        raise FederationError(
            f"Flower's model differs from ours by {difference:.1e}: expected at most {TOLERANCE:.0e}; "
            "a node failed or did other work, so speeds cannot be compared"
        )
    return PeerResult(nodes, rounds, float(cpu[1:].min()), float(wall[1:].min()), float(cpu[0]), difference)


def _simulate(out: Path, nodes: int, rounds: int) -> None:
    mark = f"benchmark/{secrets.token_hex(8)}"
    size = f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={ACTORS}"
    # The program that copies the log bears another mark: it is no part of the engine.
    config: dict[str, str | int | float] = {"out": str(out), "rounds": rounds, "nodes": nodes}
    log = out / "flower-run.log"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    extra = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with simulation_superlink(out / "superlink.log", f"{mark}/engine", extra) as cli:
        run = cli.run(APP, config, mark=f"{mark}/log", log=log, federation=size)
        deadline = time.monotonic() + RUN_SECONDS
        while is_alive(run.pid) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        end(f"{mark}/log", [run.pid])
    if not (out / "rounds.json").exists():
        raise FederationError(f"Flower's run failed or took over {RUN_SECONDS:g} s ({last_words(log)})")


def _difference(arrays: State, nodes: int, rounds: int) -> float:
    """Largest absolute difference between Flower's item table and biases and those of our compiled path."""
    ours, batch = recommender(), cohort(nodes)
    shared, local = ours.init_shared(N_ITEMS, SEED), ours.init_local(batch.user, SEED)
    for number in range(1, rounds + 1):
        total, local = train_users(ours, shared, local, batch, RoundSeed(SEED, number), None, N_ITEMS)
        shared = {n: (a + total.blocks[n] / total.users).astype(np.float32) for n, a in shared.items()}
    theirs = {"item_table": arrays["table.weight"], "item_bias": arrays["bias.weight"][:, 0]}
    return max(float(np.abs(shared[name] - theirs[name]).max()) for name in shared)
