"""`fedrec privacy audit`: tries to refute the guarantee of a configuration, and shows that it could."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy.audit.bugs import BUGS
from fedrec.privacy.audit.report import COLUMNS, AuditReport
from fedrec_server.cli.answer import Answer, notice, table, warn
from fedrec_simulations.audit import run_audit as auditing
from fedrec_simulations.cli.options import ConfigArgument, JsonFlag, Overrides, read_config


def audit(
    config: ConfigArgument,
    canaries: Annotated[int, typer.Option(min=20, help="Planted users, half of them in the run.")] = 1000,
    inject: Annotated[
        list[str] | None,
        typer.Option(metavar="BUG", help=f"Plant a bug that must be found: all, {', '.join(BUGS)}."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.", dir_okay=False)] = Path("audit.json"),
    seed: Annotated[int, typer.Option(help="Of canaries and noise.")] = 0,
    json_: JsonFlag = False,
) -> Answer:
    """Attack the real code with planted users and compare what they find with what the plan claims.

    Exit 13 if the claim is refuted. With --inject the same is done once more for each bug, which must be found.
    """
    settings = read_config(config, overrides)
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: folder {out.parent} does not exist")
    bugs = list(BUGS) if inject and "all" in inject else list(inject or [])
    reports = auditing.audit(
        settings, canaries=canaries, bugs=[None, *bugs], seed=seed, out=out, on_report=_progress
    )
    view: list[RenderableType] = []
    for report in reports:
        view.append(table(_title(settings.name, report), COLUMNS, report.rows(), left=2))
        view += [escape(f"{result.game}: {result.note}") for result in report.results if result.note]
    if bugs:
        rows = [[report.bug or "(none)", report.verdict, _found_by(report)] for report in reports]
        view.append(table("planted bugs", ("bug", "verdict", "found by"), rows, left=3))
    notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    view += [escape(note) for note in (*notes, f"written: {out}")]
    warn([f"the planted bug {report.bug!r} was not found" for report in reports[1:] if not _found_by(report)])
    document = {"audits": [report.as_dict() for report in reports], "out": out}
    return Answer(document, view, PrivacyRefused.exit_code if reports[0].verdict == "VIOLATED" else 0)


def _progress(report: AuditReport) -> None:
    notice(f"{report.bug or 'as configured'}: {report.verdict}", "dim")


def _title(name: str, report: AuditReport) -> str:
    planted = f" with planted bug: {report.bug}" if report.bug else ""
    return f"{name}{planted}: {report.verdict}"


def _found_by(report: AuditReport) -> str:
    found = [f"{result.game} ({result.view})" for result in report.results if result.verdict == "VIOLATED"]
    return ", ".join(found)
