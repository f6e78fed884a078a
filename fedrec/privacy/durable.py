"""Files that are on the disk, not on their way to it, when a function returns.

A ledger also needs the *name* of a file and of its folders to survive a power cut, which takes an fsync of each
folder. Out of scope: what is in the files.
"""

from __future__ import annotations

from pathlib import Path

from fedrec.core.files import PRIVATE, atomic_write, sync_folder

__all__ = ["PRIVATE", "durable_write", "make_folder", "sync_folder"]


def durable_write(path: Path, content: bytes) -> None:
    """Replace a file: after a crash at any moment it holds the old or the new bytes; after the return, the new.

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
