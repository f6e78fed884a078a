"""What carrying a stage costs in a deployment: seconds and CPU of a message that asks for nothing.

    python -m benchmarks.flower_rounds [--nodes 4] [--rounds 3] [--json FILE]

A federation is brought up on this machine, with TLS, keys, a gateway and a process per message. The stages of a round
under secure aggregation are sent with a small payload, and each node only keeps and drops a secret (`stage_node`).
The first round fetches the app and is no part of the figures. Everything started here is ended here.
About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from flwr.cli.build import build_fab_from_disk

from benchmarks.cpu import tree_cpu_seconds
from benchmarks.stage_node import WORD
from fedrec.core.errors import FederationError
from fedrec.wire.bundle import write_expected
from fedrec_server.federation._federation_parts import Parts
from fedrec_server.federation.federation import Federation

APP = Path(__file__).parent / "flower_stages"
IDLE_SECONDS = 10.0
#: What is shown of a message: from the request being sent to its process being born, and so on.
PARTS = ("until started", "until handled", "until answered")


def measure(nodes: int, rounds: int) -> dict[str, Any]:
    """Medians over the stages after the first round.

    Raises:
        FederationError: a stage failed, or a node's secret was not where it has to be.
    """
    with tempfile.TemporaryDirectory(prefix="fedrec-rounds-") as name, ExitStack() as stack:
        app = app_with(rounds, Path(name))
        digest = hashlib.sha256(build_fab_from_disk(app)).hexdigest()
        made = stack.enter_context(federation(Path(name), nodes, digest))
        run = lay_out(Path(name) / "run", nodes, digest)
        idle = idle_cpu_share(made)
        events: list[dict[str, Any]] = []
        cpu: list[float] = []

        def note(event: dict[str, Any]) -> None:
            events.append(event)
            cpu.append(tree_cpu_seconds(made.record.mark))

        made.run_and_wait(run, app, on_event=note)
    check(events, nodes)
    measured = [event for event in events if event["round"] > 1]
    first = len(events) - len(measured) - 1
    messages = nodes * len(measured)
    columns = zip(*parts_of(measured), strict=True)
    return {
        "seconds": median(event["seconds"] for event in measured),
        "slowest": max(event["seconds"] for event in measured),
        "round": 5 * sum(event["seconds"] for event in measured) / len(measured),
        "parts": {part: median(values) for part, values in zip(PARTS, columns, strict=True)},
        "process_cpu": median(meta["cpu"] for event in measured for meta in event["nodes"].values()),
        "cpu_per_message": (cpu[-1] - cpu[first]) / messages,
        "idle_cpu_share": idle,
    }


@contextmanager
def federation(folder: Path, nodes: int, digest: str) -> Iterator[Federation]:
    """One whose nodes serve with the benchmark's own component."""
    Parts.node_program = "benchmarks.stage_node"
    os.environ[WORD] = digest
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    made = Federation.up(folder / "federation", nodes)
    try:
        yield made
    finally:
        made.down()


def lay_out(run: Path, nodes: int, digest: str) -> Path:
    """A run folder as far as Flower's side looks at one."""
    for k in range(nodes):
        (run / "nodes" / str(k)).mkdir(parents=True)
        write_expected(run / "nodes" / str(k), digest)
    (run / "coordinator").mkdir()
    (run / "coordinator" / "task.json").write_text("{}")
    return run


def app_with(rounds: int, folder: Path) -> Path:
    """The app with another number of rounds in its settings."""
    copy = folder / "app"
    for path in APP.rglob("*.*"):
        if path.suffix in (".py", ".toml"):
            target = copy / path.relative_to(APP)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
    settings = copy / "pyproject.toml"
    settings.write_text(settings.read_text().replace("rounds = 3", f"rounds = {rounds}"))
    return copy


def idle_cpu_share(made: Federation) -> float:
    """Processors that the federation keeps busy while nothing is asked."""
    before = tree_cpu_seconds(made.record.mark)
    time.sleep(IDLE_SECONDS)
    return (tree_cpu_seconds(made.record.mark) - before) / IDLE_SECONDS


def parts_of(events: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """Seconds of the parts of each message; the last part ends when the stage does."""
    rows = []
    for event in events:
        for meta in event["nodes"].values():
            end = event["sent"] + event["seconds"]
            rows.append((meta["born"] - event["sent"], meta["handled"] - meta["born"], end - meta["handled"]))
    return rows


def check(events: list[dict[str, Any]], nodes: int) -> None:
    for event in events:
        metas = event["nodes"].values()
        if event["failures"] or len(metas) != nodes:
            raise FederationError(f"stage {event['stage']} failed: {event['failures']}")
        first, last = event["stage"] == "advertise", event["stage"] == "unmask"
        if any(
            meta["held"] == first or meta["records"] != (0 if last else 1) or meta["trains"] for meta in metas
        ):
            raise FederationError(
                f"stage {event['stage']} of round {event['round']}: a secret is not in its place"
            )


def print_table(result: dict[str, Any], nodes: int) -> None:
    """One row per figure."""
    print(f"{nodes} nodes, an empty stage, median; {os.cpu_count()} cores\n")
    rows = [("seconds of a stage", "seconds"), ("  slowest", "slowest"), ("five stages, seconds", "round")]
    for label, name in rows:
        print(f"{label:44}{result[name]:12.2f}")
    for part in PARTS:
        print(f"{'  of a message, ' + part:44}{result['parts'][part]:12.2f}")
    rows = [
        ("CPU seconds of a message's process", "process_cpu"),
        ("CPU seconds per message, all", "cpu_per_message"),
    ]
    rows.append(("processors busy while idle", "idle_cpu_share"))
    for label, name in rows:
        print(f"{label:44}{result[name]:12.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower_rounds", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="the first is not measured")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = measure(given.nodes, given.rounds)
    print_table(result, given.nodes)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
