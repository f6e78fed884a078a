"""`fedrec-server doctor`: what is wrong with this installation or with run folders, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrec.core.errors import EnvironmentProblem
from fedrec_server.cli.answer import Answer, notice
from fedrec_server.cli.options import JsonFlag
from fedrec_server.operations.checks import Check, run_checks
from fedrec_server.operations.folder_checks import check_folders

Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FOLDER]...",
        help="Look through these folders of runs and federations instead of the installation.",
        show_default=False,
    ),
]
Remove = Annotated[
    bool,
    typer.Option(
        "--remove", help="Remove what should not lie in the folders; a killed run loses the round it was in."
    ),
]
#: Where runs lie by default; looked through with the installation.
RUNS = Path("runs")


#: Extras that the operator's program needs, the base among them.
OPERATOR = ("", "client", "server")


def doctor(folders: Folders = None, remove: Remove = False, json_: JsonFlag = False) -> Answer:
    """Check the installation and the folder runs/, or the folders given; exit 10 on problems.

    In folders of runs and federations: sums and models that kills or earlier versions left, and should not be there.
    """
    return examine(OPERATOR, folders, remove)


def examine(needed: Collection[str], folders: list[Path] | None, remove: bool) -> Answer:
    """What a doctor finds, for a program that needs these extras."""
    checks: list[Check] = []
    if not folders:
        checks += run_checks(needed, lambda name: notice(f"checking {name}", "dim"))
    if folders or RUNS.is_dir():
        checks += check_folders(folders or [RUNS], remove=remove)
    problems = [check for check in checks if not check.ok]
    lines = []
    for check in checks:
        mark = "[green]ok     [/]" if check.ok else "[bold red]problem[/]"
        todo = "" if check.ok else f"  → {check.todo}"
        lines.append(f"{mark} {escape(check.name)}: {escape(check.found + todo)}")
    lines.append("all is well" if not problems else f"{len(problems)} problems")
    document = {"ok": not problems, "checks": [vars(check) for check in checks]}
    return Answer(document, lines, EnvironmentProblem.exit_code if problems else 0)
