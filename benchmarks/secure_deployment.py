"""A real federation under secure aggregation and distributed privacy, with nodes that vanish, beside the same plan in
one process.

    python -m benchmarks.secure_deployment EXPERIMENT.toml [--set data.path=...] [--out FOLDER] [--seeds 3]

SuperLink, gateway and one SuperNode per node run on loopback over TLS. Once a round a node is stopped (SIGSTOP to its
processes, so that it neither answers nor says goodbye) at a random moment of the protocol for longer than a stage
waits, and goes on later; the record of each round says in which stage it was missed. Then the same plan runs in one
process, with new noise each time. Noise is drawn from the operating system everywhere.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrec.core.processes import kill, marked
from fedrec_server.federation.federation import Federation
from fedrec_server.federation.run_files import app_folder
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder

#: A stopped node is missed if it stays away for longer than a stage waits.
LONGER = 4.0
#: Somewhere within a round.
MOMENT_SECONDS = 25.0


class Vanishing:
    """Stops one node after another, each at a random moment of a round."""

    def __init__(self, federation: Federation, away_seconds: float) -> None:
        self.stopped: list[str] = []
        self._federation = federation
        self._away_seconds = away_seconds
        self._round, self._end = threading.Event(), threading.Event()
        self._random = random.Random(4)

    def event(self, event: dict[str, Any]) -> None:
        """A round is over, another begins."""
        if "round" in event:
            self._round.set()
            print(f"  {summary(event)}", flush=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the run goes on."""
        thread = threading.Thread(target=self._work)
        self._round.set()
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._round.set()
            thread.join()

    def _work(self) -> None:
        nodes = list(range(self._federation.record.nodes))
        self._random.shuffle(nodes)
        while True:
            self._round.wait()
            self._round.clear()
            if self._end.wait(self._random.uniform(0.0, MOMENT_SECONDS)):
                return
            node = nodes[len(self.stopped) % len(nodes)]
            mark = self._federation.parts.mark(f"node-{node}")
            kill(marked(mark), signal.SIGSTOP)
            self.stopped.append(str(node))
            self._end.wait(self._away_seconds)
            kill(marked(mark), signal.SIGCONT)


def summary(record: dict[str, Any]) -> str:
    """One line of a round's record."""
    facts = record.get("secagg", {})
    stages = " ".join(f"{name} {seconds:.1f}" for name, seconds in facts.get("seconds", {}).items())
    state = "abandoned" if record.get("abandoned") else "lost" if record.get("lost") else "done"
    missed = "; ".join(f"node {node}: {why[:90]}" for node, why in record.get("failures", {}).items())
    return (
        f"round {record['round']} {state}: {record['nodes']} nodes in the sum, "
        f"{record.get('seconds', 0.0):.0f} s [{stages}], "
        f"{facts.get('bytes_up_per_node', 0) / 1e6:.2f} / {facts.get('bytes_down_per_node', 0) / 1e6:.2f} MB "
        f"up / down per node{'; missed: ' + missed if missed else ''}"
    )


def deployed(config: Config, prepared: Prepared, folder: Path) -> RunFolder:
    """The run in a federation of processes."""
    run = RunFolder.create(folder / "run", config, prepared, config.federation.nodes, share_split=False)
    federation = Federation.up(
        folder / "federation", config.federation.nodes, on_step=lambda s: print(f"  {s}")
    )
    vanishing = Vanishing(federation, config.federation.stage_seconds + LONGER)
    try:
        with vanishing.at_work():
            started = time.perf_counter()
            federation.run_and_wait(run.path, app_folder(), on_event=vanishing.event)
            print(f"  {time.perf_counter() - started:.0f} s in all; stopped: {', '.join(vanishing.stopped)}")
    finally:
        federation.down()
        federation.forget()
    return run


def ndcg(run: RunFolder) -> float:
    """Full-rank NDCG@10 on the test part."""
    return float(run.result["test"]["metrics"]["all"]["full/ndcg@10"]["value"])


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", type=Path, help="a TOML file")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("runs/secure-deployment"))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    config = load_config(given.experiment, given.overrides)
    prepared = prepare(config)
    print(f"{config.name}: {config.federation.nodes} SuperNodes on loopback", flush=True)
    there = ndcg(deployed(config, prepared, given.out))
    here = []
    for seed in range(given.seeds):
        run = RunFolder.create(
            given.out / f"in-process-{seed}", config, prepared, config.federation.nodes, share_split=False
        )
        run_in_process(run.path)
        here.append(ndcg(run))
    spread = statistics.stdev(here) if len(here) > 1 else float("nan")
    print(f"NDCG@10 over all items: deployed, with drops {there:.4f}; in process, no drops, "
          f"{statistics.mean(here):.4f} ± {spread:.4f} (sd of {len(here)} draws of noise: "
          f"{', '.join(f'{value:.4f}' for value in here)})")  # fmt: skip


if __name__ == "__main__":
    main()
