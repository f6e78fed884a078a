"""`fedrec train`: a run from a configuration, or on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import ConfigError, RunError
from fedrec_server.cli.answer import INTERRUPTED, Answer, table, warn
from fedrec_simulations.cli.options import Engine, JsonFlag, Overrides, read_config
from fedrec_simulations.cli.running import default_folder, drive, lay_out
from fedrec_simulations.experiments.prepare import prepare, prepare_files
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.privacy_page import read_statement
from fedrec_simulations.report.summary import Summary
from fedrec_simulations.report.tables import COLUMNS, comparison, notes


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]", help="TOML file, or the name of an experiment that comes with fedrec."
        ),
    ] = None,
    overrides: Overrides = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="Where the rounds run; in-process unless a resumed run says otherwise."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write; runs/<name> by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run; it ends as if never interrupted.")
    ] = None,
    train_file: Annotated[
        Path | None,
        typer.Option(
            "--train", metavar="FILE", help="Prepared split: user,item[,rating][,timestamp], CSV or Parquet."
        ),
    ] = None,
    validation_file: Annotated[
        Path | None,
        typer.Option("--validation", metavar="FILE", help="Held out for choosing rounds; same columns."),
    ] = None,
    items_file: Annotated[
        Path | None,
        typer.Option("--items", metavar="FILE", help="Column item: items no one interacted with yet."),
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write RUN/report.html.")] = True,
    json_: JsonFlag = False,
) -> Answer:
    """Train a federated recommender. Ctrl-C stops at the end of a round and leaves a checkpoint."""
    if resume is not None:
        if config or overrides or out or train_file or validation_file or items_file:
            raise click.UsageError(
                "--resume takes everything from the run folder: give only --engine beside it"
            )
        run = RunFolder.open(resume)
    else:
        if config is None:
            raise click.UsageError("give a CONFIG, or --resume RUN")
        if train_file is None and (validation_file or items_file):
            raise click.UsageError("--validation and --items need --train FILE")
        run = _new_run(
            config, overrides, engine or "in-process", out, (train_file, validation_file, items_file)
        )
    return finish(run, engine or Summary(run).started["engine"], report)


def _new_run(
    source: str, overrides: list[str] | None, engine: Engine, out: Path | None, files: tuple[Path | None, ...]
) -> RunFolder:
    config = read_config(source, overrides)
    folder = out or default_folder(config)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: give a folder")
    if (folder / "config.json").exists():
        # RunFolder.create says so, too, but only after the data is read.
        raise RunError(f"{folder} already holds a run: use --resume {folder}, or --out with another folder")
    train_file, validation_file, items_file = files
    if train_file is not None:
        prepared = prepare_files(config, train_file, validation_file, items_file)
    else:
        prepared = prepare(config)
    return lay_out(config, prepared, folder, engine)


def finish(run: RunFolder, engine: Engine, report: bool = True) -> Answer:
    """Drive a run to its end (or to Ctrl-C), write its report, and say what came out."""
    warn(run.config.warnings())
    outcome = drive(run, engine)
    summary = Summary(run)
    if not outcome.finished:
        go_on = f"fedrec train --resume {run.path}"
        text = f"stopped after round {outcome.rounds} with a checkpoint; go on with: {escape(go_on)}"
        return Answer(summary.as_dict() | {"resume": go_on}, [text], INTERRUPTED)
    page = None
    if report:
        from fedrec_simulations.report.page import write_page

        page = write_page(run.path / "report.html", [summary])
    return Answer(summary.as_dict() | {"report": page}, view(summary, page))


def view(summary: Summary, page: Path | None) -> list[RenderableType]:
    """What a finished run prints."""
    run = escape(str(summary.run.path))
    if summary.result.get("test") is None and summary.held is None and summary.has_test:
        view: list[RenderableType] = [
            f"trained for {summary.result['rounds']} rounds; nothing was evaluated{_why(summary)}."
        ]
    elif summary.result.get("test") is None and summary.held is None:
        view = [
            f"trained for {summary.result['rounds']} rounds; there is no test part here, so nothing was evaluated.",
            f"Rankings for whoever holds it: fedrec evaluate {run} --rankings rankings.csv --top 100",
        ]
    else:
        view = [table(summary.name, ("run", *COLUMNS), comparison([summary])), *notes([summary])]
    where = f"report: {escape(str(page))}\n" if page else ""
    statement = summary.run.path / "privacy.json"
    if statement.exists():
        said = read_statement(statement)["headline"]
        view.append(f"privacy: {escape(said)}  ({escape(str(summary.run.path / 'privacy.html'))})")
    return [*view, f"{where}recommend: fedrec recommend {run} --user USER"]


def _why(summary: Summary) -> str:
    """Why a run with a test part has no figures."""
    lost = summary.result.get("test_lost")
    return f": {escape(lost)}" if lost else ", since privacy.metrics is 'none'"
