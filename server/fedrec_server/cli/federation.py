"""`fedrec-server federation up|status|run|down`: a real federation on this machine, kept up between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec_server.cli.answer import INTERRUPTED, Answer, notice, table, warn
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag, RunArgument
from fedrec_server.operations import deployment
from fedrec_server.operations.run_artifacts import RunArtifacts

Folder = Annotated[Path, typer.Option("--folder", help="Where the federation keeps keys, database and logs.")]
HERE = Path("runs/federation")


def up(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 4,
    folder: Folder = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Start a federation and wait until all its nodes are there."""
    status = deployment.federation_up(folder, nodes, on_step=notice)
    return Answer(status, _view(status))


def status(folder: Folder = HERE, json_: JsonFlag = False) -> Answer:
    """Say what runs, and which nodes are online."""
    found = deployment.federation_status(folder)
    return Answer(found, _view(found))


def run(run: RunArgument, folder: Folder = HERE, json_: JsonFlag = False) -> Answer:
    """Run, or continue, a run folder on the federation that is up."""
    found = RunArtifacts.open(run)
    warn(found.config.warnings())
    with StopRequest() as stop:
        outcome = deployment.federation_run(folder, run, on_event=_tell, stop=stop)
    document = {"run": run, "rounds": outcome.rounds, "finished": outcome.finished, "result": outcome.result}
    if not outcome.finished:
        command = f"fedrec-server federation run {run} --folder {folder}"
        text = f"stopped after round {outcome.rounds} with a checkpoint; continue with: {escape(command)}"
        return Answer(document | {"resume": command}, [text], INTERRUPTED)
    lines = [
        f"run {escape(str(run))} is finished after {outcome.rounds} rounds",
        f"statement and report: fedrec privacy statement {escape(str(run))}, fedrec evaluate {escape(str(run))}",
    ]
    return Answer(document, lines)


def down(folder: Folder = HERE, json_: JsonFlag = False) -> Answer:
    """Stop every process of the federation; what nodes hold stays on their disks."""
    deployment.federation_down(folder)
    return Answer({"folder": folder, "stopped": True}, [f"federation in {escape(str(folder))} is down"])


def _tell(event: dict[str, Any]) -> None:
    if "round" in event:
        notice(
            f"round {event['round']}: {event.get('nodes', 0)} nodes, {len(event.get('failures', {}))} failures",
            "dim",
        )


def _view(status: dict[str, Any]) -> list[RenderableType]:
    parts = [[name, "runs" if alive else "does not run"] for name, alive in status["processes"].items()]
    nodes = [[f"node {name} (as Flower sees it)", text] for name, text in status["nodes"].items()]
    head = f"federation in {status['folder']}, gateway {status['gateway']}"
    return [table(head, ["part", "state"], parts + nodes, left=2)]
