"""Training sessions that one test module starts: where their folders lie and which processes are theirs."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedrec.core.processes import MARK
from fedrec_client.training import _run_task as run_task

WORD = "FEDREC_TEST_SESSIONS"


@dataclass(frozen=True)
class Sessions:
    """No one else's on this machine.

    Attributes:
        ram: a folder in memory of this module's own, in which its sessions make theirs.
        word: stands in the environment of every process that this module starts.
    """

    ram: Path
    word: str

    def folders(self) -> set[Path]:
        """Folders of the sessions that run, or that left theirs."""
        return set(self.ram.iterdir())

    def processes(self) -> dict[int, str]:
        """Processes of the sessions by id: their environment and command line."""
        mark, ours = f"{MARK}=session-".encode(), f"{WORD}={self.word}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # another user's, or gone meanwhile
                told = (folder / "environ").read_bytes()
                if mark in told and ours in told:
                    found[int(folder.name)] = (told + (folder / "cmdline").read_bytes()).decode(
                        errors="replace"
                    )
        return found

    def kill(self, folder: Path) -> None:
        """SIGKILL for every process of a session; its folder stands in their command lines."""
        for process, told in self.processes().items():
            if str(folder) in told:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


@contextmanager
def own_sessions() -> Iterator[Sessions]:
    """Sessions started from here on are ours; their folders are removed at the end."""
    made = Sessions(Path(tempfile.mkdtemp(prefix="tests-", dir=run_task.RAM)), secrets.token_hex(8))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(WORD, made.word)
            patch.setattr(run_task, "RAM", made.ram)
            yield made
    finally:
        shutil.rmtree(made.ram, ignore_errors=True)
