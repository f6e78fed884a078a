"""Files that are on the disk, not on their way to it, when a function returns.

`fedrec.wire.files` protects against half-written files; a ledger also needs the *name* to survive a power cut, which
takes an fsync of the folder. Out of scope: what is in the files.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Only the owner reads or writes: a ledger's key, and updates that were not sent yet.
PRIVATE = 0o600


def durable_write(path: Path, content: bytes) -> None:
    """Replace a file: after a crash at any moment it holds the old or the new bytes; after the return, the new.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
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
