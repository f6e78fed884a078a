"""Files that are on the disk, not on their way to it, when a function returns, and that only their owner can read.

A ledger also needs the *name* of a file and of its folders to survive a power cut, which takes an fsync of each
folder. The same holds for a removal: without the fsync a power cut can bring a file back. A removed file's blocks are
not overwritten: on journaling file systems and flash that would reach other blocks anyway. Out of scope: what is in
the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedrec.errors import RunError
from fedrec.wire.files import PRIVATE, PRIVATE_FOLDER, atomic_write, sync_folder

__all__ = [
    "PRIVATE",
    "PRIVATE_FOLDER",
    "durable_write",
    "make_folder",
    "make_private",
    "remove_durably",
    "remove_half_written",
    "sync_folder",
]


def durable_write(path: Path, content: bytes) -> None:
    """Replace a file: after a crash at any moment it holds the old or the new bytes; after the return, the new.

    It is readable by its owner only from its first byte on. A link at `path` is replaced, never followed.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    atomic_write(path, content, PRIVATE)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, with their names on the disk."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def remove_half_written(folder: Path) -> None:
    """Remove what writers in this folder left when they were killed; nobody else may be writing in it.

    Raises:
        OSError: one cannot be removed.
    """
    remove_durably(folder.glob(".*.tmp"))


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


def make_private(folder: Path) -> None:
    """Close a folder to everyone but its owner.

    Raises:
        RunError: it cannot be closed.
    """
    try:
        if folder.stat().st_mode & 0o077:
            folder.chmod(PRIVATE_FOLDER)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be closed to other users ({error.strerror}): put it where its owner may set "
            "mode 0700"
        ) from error
