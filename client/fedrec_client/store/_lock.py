"""One process holds a store's folder at a time, whatever becomes of the files in it.

The database cannot guard itself: a deletion puts a new file in its place, and a process that waits for the old one
would get a file that nothing names any more. Out of scope: threads of one process, which share a store.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Self

from fedrec.core.errors import StoreLocked
from fedrec.core.files import PRIVATE, refuse_link

LOCK_FILE = "store.lock"
_POLL_SECONDS = 0.02


class FolderLock:
    """Held until `release`, or until the process ends."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def take(cls, folder: Path, wait_seconds: float) -> Self:
        """Wait for a folder's lock.

        Raises:
            StoreLocked: another process has it.
            OSError: the lock's file cannot be made, or is a symbolic link.
        """
        path = folder / LOCK_FILE
        refuse_link(path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), PRIVATE)
        deadline = time.monotonic() + wait_seconds
        try:
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    raise StoreLocked(f"another process holds the store {folder}: close it there first")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(handle)
            raise
        return cls(handle)

    def release(self) -> None:
        """Let the next one in; harmless when that was done before."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _locked(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
