"""`fedrec evaluate`: evaluate a finished run again on the data in its folder, or hand its rankings on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import DataError
from fedrec.evaluation.report import EvaluationReport
from fedrec_server.cli.answer import Answer, table, warn
from fedrec_server.operations.sections import NoPrivacy
from fedrec_simulations.cli.options import JsonFlag, RunArgument
from fedrec_simulations.cli.rankings import write_rankings
from fedrec_simulations.engines.held_data import evaluate_held
from fedrec_simulations.experiments.baseline import Baseline, fit_baseline
from fedrec_simulations.experiments.features import category_matrix
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.report.summary import Summary, write_baseline
from fedrec_simulations.report.tables import notes


def evaluate(
    run: RunArgument,
    rankings: Annotated[
        Path | None,
        typer.Option(metavar="OUT.csv", help="Write user,item,rank of unseen items for every user."),
    ] = None,
    top: Annotated[str, typer.Option(metavar="N|all", help="Length of the ranking of each user.")] = "100",
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline", help="Train and evaluate the centralised baseline, too, and keep its result."
        ),
    ] = False,
    json_: JsonFlag = False,
) -> Answer:
    """Evaluate the final model on the test part, or write its rankings for others to evaluate."""
    length = _length(top)
    folder = RunFolder.open(run)
    config = folder.config
    private = not isinstance(config.privacy, NoPrivacy)
    has_test = folder.split.test is not None if private else folder.result.get("test") is not None
    if not has_test and (rankings is None or baseline):
        raise DataError(
            f"run {run} has no test part, so nothing can be evaluated here: write its rankings for whoever holds "
            "it, with --rankings OUT.csv"
        )
    warn(config.warnings())
    document: dict[str, Any] = {"run": run}
    view: list[RenderableType] = []
    if has_test and not (private and rankings is not None and not config.evaluation.held_data):
        report = evaluate_held(folder)
        document["held_data" if private else "test"] = report.as_dict()
        view += _view(config.name, report)
        view += notes([Summary(folder)]) if private else []
    if baseline:
        found = fit_baseline(config, folder.split, category_matrix(folder.catalog), folder.features)
        write_baseline(folder, found)
        document["baseline"] = found.as_dict()
        view += _baseline_view(found)
    if rankings is not None:
        users, rows = write_rankings(folder, rankings, length)
        document["rankings"] = {"file": rankings, "users": users, "rows": rows}
        view.append(f"rankings of {users} users, {rows} rows: {escape(str(rankings))}")
    return Answer(document, view)


def _length(top: str) -> int | None:
    if top == "all":
        return None
    if not top.isdigit() or int(top) < 1:
        raise click.UsageError(f"--top {top!r}: expected a whole number of at least 1, or all")
    return int(top)


def _view(name: str, report: EvaluationReport) -> list[RenderableType]:
    groups = [group for group in ("all", "few", "middle", "many") if group in report.metrics]
    few, many = report.group_bounds
    meaning = {
        "all": "all",
        "few": f"few (<{few})",
        "middle": f"middle ({few} to {many - 1})",
        "many": f"many (≥{many})",
    }
    columns = ["metric", *(f"{meaning[group]}: {report.n_users[group]} users" for group in groups)]
    rows = []
    for metric in report.metrics["all"]:
        cells = []
        for group in groups:
            found = report.metrics[group][metric]
            spread = "" if found.low is None else f" [{found.low:.4f}, {found.high:.4f}]"
            cells.append(f"{found.value:.4f}{spread}")
        rows.append([metric, *cells])
    lists = [[metric, f"{value:.4f}"] for metric, value in report.lists.items()]
    out: list[RenderableType] = [table(f"{name} on the test part (95% bootstrap intervals)", columns, rows)]
    if lists:
        out.append(table("recommended lists", ["metric", "value"], lists))
    if report.answers:
        answers = [[metric, f"{value:.4f}"] for metric, value in report.answers.items()]
        out.append(table("probabilities of what was held out", ["metric", "value"], answers))
    if report.unscored_users:
        out.append(f"[bold red]{report.unscored_users} users got scores that are no numbers[/]")
    return out


def _baseline_view(baseline: Baseline) -> list[RenderableType]:
    rows = [[name, f"{value:.4f}"] for name, value in baseline.report.values().items()]
    return [
        table(
            f"centralised baseline ({baseline.epochs} epochs, {baseline.fit_seconds:.1f} s)",
            ["metric", "value"],
            rows,
        )
    ]
