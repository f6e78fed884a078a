"""`fedrec federation up|status|run|down`: a real federation on this machine, kept up between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import EnvironmentProblem
from fedrec_simulations.cli.answer import INTERRUPTED, Answer, notice, table, warn
from fedrec_simulations.cli.interrupts import StopRequest
from fedrec_simulations.cli.options import JsonFlag, Overrides, read_config
from fedrec_simulations.cli.running import default_folder, lay_out
from fedrec_simulations.experiments.prepare import prepare
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.progress import RoundProgress

app = typer.Typer(help="A federation on this machine: SuperLink, gateway, nodes, over TLS.")
Folder = Annotated[Path, typer.Option("--folder", help="Where the federation keeps keys, database and logs.")]
HERE = Path("runs/federation")


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 4,
    folder: Folder = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Start a federation and wait until all its nodes are there."""
    status = _engine().federation_up(folder, nodes, on_step=notice)
    return Answer(status, _view(status))


@app.command()
def status(folder: Folder = HERE, json_: JsonFlag = False) -> Answer:
    """What runs, and which nodes are online."""
    found = _engine().federation_status(folder)
    return Answer(found, _view(found))


@app.command()
def run(
    target: Annotated[
        str, typer.Argument(metavar="RUN|CONFIG", help="Run to go on with, or configuration to start.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write; runs/<name> by default.")] = None,
    folder: Folder = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Run (or go on with) a run on the federation that is up."""
    from fedrec.recommenders.registry import build
    from fedrec_simulations.cli.train import view
    from fedrec_simulations.report.page import write_page
    from fedrec_simulations.report.privacy_facts import write_privacy
    from fedrec_simulations.report.summary import Summary

    engine = _engine()
    nodes = len(engine.federation_status(folder)["nodes"])
    place = _run_folder(target, overrides, out, nodes)
    config = place.config
    warn(config.warnings())
    fixed = build(config.model).fixed_rounds
    with StopRequest() as stop, RoundProgress(config, place.records, fixed_rounds=fixed) as progress:
        outcome = engine.federation_run(folder, place.path, on_event=progress, stop=stop)
    summary = Summary(place)
    if not outcome.finished:
        go_on = f"fedrec federation run {place.path} --folder {folder}"
        text = f"stopped after round {outcome.rounds} with a checkpoint; go on with: {escape(go_on)}"
        return Answer(summary.as_dict() | {"resume": go_on}, [text], INTERRUPTED)
    write_privacy(place)
    page = write_page(place.path / "report.html", [summary])
    return Answer(summary.as_dict() | {"report": page}, view(summary, page))


@app.command()
def down(folder: Folder = HERE, json_: JsonFlag = False) -> Answer:
    """Stop every process of the federation; what nodes hold stays on their disks."""
    _engine().federation_down(folder)
    return Answer({"folder": folder, "stopped": True}, [f"federation in {escape(str(folder))} is down"])


def _run_folder(target: str, overrides: list[str] | None, out: Path | None, nodes: int) -> RunFolder:
    if (Path(target) / "config.json").exists():
        return RunFolder.open(Path(target))
    config = read_config(target, overrides)
    return lay_out(config, prepare(config), out or default_folder(config), "deployment", nodes)


def _engine() -> Any:
    """The deployment engine, whose packages are an extra."""
    try:
        from fedrec_simulations.engines import deployment
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"a federation needs package {error.name!r}: pip install 'fedrec[sim]'"
        ) from error
    return deployment


def _view(status: dict[str, Any]) -> list[RenderableType]:
    parts = [[name, "runs" if alive else "does not run"] for name, alive in status["processes"].items()]
    nodes = [[f"node {name} (as Flower sees it)", text] for name, text in status["nodes"].items()]
    head = f"federation in {status['folder']}, gateway {status['gateway']}"
    return [table(head, ["part", "state"], parts + nodes, left=2)]
