"""Files that a coordinator or a federation should not have left: found after kills, and from earlier versions.

A run that ends in any other way than by a kill leaves none, and a killed one removes its own when it goes on. What is
found here belongs to runs that were not resumed, or to versions of fedrec that left sums without noise behind. Out of
scope: folders of nodes, which hold the data themselves, and printing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedrec.core.errors import FedrecError, RunError
from fedrec.core.files import read_arrays
from fedrec.core.processes import marked
from fedrec.privacy.private_files import make_private, remove_durably
from fedrec_server.federation._federation_parts import Parts
from fedrec_server.federation.launch import Launch
from fedrec_server.federation.superlink_state import database_of
from fedrec_server.rounds.kept_sum import SUM_FILE
from fedrec_server.rounds.task import SEALED_KEY


@dataclass(frozen=True)
class Leftover:
    """One file, or a folder that other users can look into.

    Attributes:
        path: of it.
        what: it is, in a few words.
        folder: of the coordinator or federation that left it.
        resumes: a killed run goes on from it; without it that round is lost.
    """

    path: Path
    what: str
    folder: Path
    resumes: bool = False

    def remove(self) -> None:
        """Remove the file, synced, or close the folder.

        Raises:
            RunError: it cannot be done.
        """
        if self.path.is_dir():
            make_private(self.path)
            return
        try:
            remove_durably([self.path])
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be removed ({error.strerror}): remove it as its owner"
            ) from error


@dataclass(frozen=True)
class Found:
    """What lies in some folders.

    Attributes:
        coordinators: folders of coordinators that were looked at.
        busy: those of them on which a process works now; they were not looked into.
        leftovers: of the others.
    """

    coordinators: int
    busy: int
    leftovers: list[Leftover]


def find_leftovers(roots: list[Path]) -> Found:
    """Look through folders and all below them; links are not followed.

    Raises:
        RunError: there is no such folder.
    """
    coordinators = busy = 0
    leftovers: list[Leftover] = []
    for root in roots:
        if not root.is_dir():
            raise RunError(f"{root} is not a folder: give run folders, or a folder of them")
        for place, _, files in os.walk(root):
            folder = Path(place)
            if "task.json" in files:
                coordinators += 1
                if Launch(folder).is_alive():
                    busy += 1
                else:
                    leftovers += _in_coordinator(folder)
            if "federation.json" in files:
                leftovers += _in_federation(folder)
    return Found(coordinators, busy, leftovers)


def _in_coordinator(folder: Path) -> list[Leftover]:
    finished = (folder / "result.json").exists()
    found = []
    for path in sorted(folder.iterdir()):
        if path.name == SUM_FILE:
            found.append(Leftover(path, _kind_of_sum(path), folder, resumes=not finished))
        elif path.name.startswith("staged"):
            what = "a release that may not have been charged"
            found.append(Leftover(path, what, folder, resumes=not finished))
        elif path.name.startswith(".") and path.name.endswith(".tmp"):
            found.append(Leftover(path, "what a killed writer left", folder))
        elif path.name == SEALED_KEY and finished:
            found.append(Leftover(path, "the key that opens the replies of a finished run", folder))
    if (found or not finished) and folder.stat().st_mode & 0o077:
        found.append(Leftover(folder, "other users can look into a coordinator's folder", folder))
    return found


def _kind_of_sum(path: Path) -> str:
    plan = None
    with suppress(OSError, ValueError, KeyError):
        plan = json.loads((path.parent / "task.json").read_text())["privacy"]
    if plan is None:
        return "a sum of a run without a privacy plan"
    with suppress(RunError):
        if read_arrays(path)[1].get("noised") is True:
            return "a sum with its noise that may not have been charged"
    return "a sum WITHOUT NOISE of a run with a privacy plan"


def _in_federation(folder: Path) -> Iterator[Leftover]:
    try:
        parts = Parts.read(folder)
    except FedrecError:
        return
    if marked(parts.record.mark):
        return
    database = database_of(parts.home("superlink"))
    for path in sorted(database.parent.glob(f"{database.name}*")):
        yield Leftover(path, "messages of nodes in the database of a federation that is down", folder)
