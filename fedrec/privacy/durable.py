"""Files that are on the disk, not on their way to it, when a function returns, and that only their owner can read.

`fedrec.wire.files` protects against half-written files; a ledger also needs the *name* to survive a power cut, which
takes an fsync of the folder. The same holds for a removal: without the fsync a power cut can bring a file back. A
removed file's blocks are not overwritten: on journaling file systems and flash that would reach other blocks anyway.
Out of scope: what is in the files.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from fedrec.errors import RunError

#: Only the owner reads or writes: a ledger's key, and updates that were not sent yet.
PRIVATE = 0o600
PRIVATE_FOLDER = 0o700


def durable_write(path: Path, content: bytes) -> None:
    """Replace a file: after a crash at any moment it holds the old or the new bytes; after the return, the new.

    It is readable by its owner only from its first byte on. A link at `path` is replaced, never followed.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, with their names on the disk."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
