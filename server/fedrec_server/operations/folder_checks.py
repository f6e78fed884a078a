"""Run folders under `fedrec doctor`: what should not lie there, and what to do. Out of scope: printing."""

from __future__ import annotations

from pathlib import Path

from fedrec_server.federation.leftovers import Leftover, find_leftovers
from fedrec_server.operations.checks import Check


def check_folders(roots: list[Path], *, remove: bool = False) -> list[Check]:
    """One line for all folders, and one for each file that should not be there.

    Args:
        roots: run folders, federations, or folders of them.
        remove: remove what is found.

    Raises:
        RunError: there is no such folder, or something cannot be removed.
    """
    found = find_leftovers(roots)
    looked = f"{found.coordinators} in {', '.join(map(str, roots))}"
    if found.busy:
        looked += f"; {found.busy} not looked into, because a process works on them"
    checks = [Check("folders of coordinators", True, looked)]
    for leftover in found.leftovers:
        if remove:
            leftover.remove()
            done = "closed" if leftover.path.is_dir() else "removed"
            checks.append(Check(str(leftover.path), True, f"{leftover.what}: {done}"))
        else:
            checks.append(Check(str(leftover.path), False, leftover.what, _todo(leftover)))
    return checks


def _todo(leftover: Leftover) -> str:
    if leftover.path.is_dir():
        return f"chmod 700 {leftover.path}"
    remove = f"fedrec doctor --remove {leftover.folder}"
    if leftover.resumes:
        return f"resume the run, or give its round up with: {remove}"
    return remove
