"""Folders for their owner alone, and removals that are on the disk when they return.

Without an fsync of the folder a power cut can bring a removed file back. Its blocks are not overwritten: on
journaling file systems and flash that would reach other blocks anyway. Out of scope: what is in the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.core.files import PRIVATE_FOLDER, sync_folder

OTHERS = 0o077


def remove_durably(paths: Iterable[Path]) -> None:
    """Remove files that may be there; once this returns a power cut cannot bring them back.

    Raises:
        OSError: one cannot be removed.
    """
    touched = set()
    for path in paths:
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        touched.add(path.parent)
    for folder in touched:
        sync_folder(folder)


def remove_half_written(folder: Path) -> None:
    """Remove what writers in this folder left when they were killed; no other process may be writing in it.

    Raises:
        OSError: one cannot be removed.
    """
    remove_durably(folder.glob(".*.tmp"))


def make_private(folder: Path) -> None:
    """Close a folder to everyone but its owner.

    Raises:
        RunError: it cannot be closed.
    """
    try:
        if folder.stat().st_mode & OTHERS:
            folder.chmod(PRIVATE_FOLDER)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be closed to other users ({error.strerror}): put it where its owner may set "
            "mode 0700"
        ) from error
