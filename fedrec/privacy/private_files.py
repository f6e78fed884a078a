"""Files for their owner alone, and removals that are on the disk when they return.

Without an fsync of the folder a power cut can bring a removed file back. Its blocks are not overwritten: on
journaling file systems and flash that would reach other blocks anyway. Out of scope: what is in the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedrec.errors import RunError
from fedrec.privacy.durable import durable_write, sync_folder

OTHERS = 0o077
OWNER_ONLY = 0o700


def write_private_arrays(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], header: dict[str, Any]
) -> None:
    """Write a file for `fedrec.wire.files.read_arrays` that only its owner reads, durable when this returns.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    metadata = {"header": json.dumps(header, sort_keys=True, default=float)}
    durable_write(path, save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, metadata))


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
    """Remove what writers in this folder left when they were killed; nobody else may be writing in it.

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
            folder.chmod(OWNER_ONLY)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be closed to other users ({error.strerror}): put it where its owner may set "
            "mode 0700"
        ) from error
