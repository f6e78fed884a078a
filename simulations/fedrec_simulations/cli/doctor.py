"""`fedrec doctor`: what is wrong with this installation, each problem with what to do about it."""

from __future__ import annotations

from rich.markup import escape

from fedrec.errors import EnvironmentProblem
from fedrec_simulations.checks import run_checks
from fedrec_simulations.cli.answer import Answer, notice
from fedrec_simulations.cli.options import JsonFlag


def doctor(json_: JsonFlag = False) -> Answer:
    """Check Python, packages, compiled kernels, disk, memory, Flower and the bundled data; exit 10 on problems."""
    checks = run_checks(lambda name: notice(f"checking {name}", "dim"))
    problems = [check for check in checks if not check.ok]
    lines = []
    for check in checks:
        mark = "[green]ok     [/]" if check.ok else "[bold red]problem[/]"
        todo = "" if check.ok else f"  → {check.todo}"
        lines.append(f"{mark} {escape(check.name)}: {escape(check.found + todo)}")
    lines.append("all is well" if not problems else f"{len(problems)} problems")
    document = {"ok": not problems, "checks": [vars(check) for check in checks]}
    return Answer(document, lines, EnvironmentProblem.exit_code if problems else 0)
