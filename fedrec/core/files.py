"""Files that are never half-written: atomic replacement, and states as safetensors with a JSON header.

A file is its owner's alone from its first byte, unless the caller says that others may read it, and no symbolic link
is followed: neither one in the place of the temporary file nor one in the place of the file itself. When a function
here returns, the content and the name are on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fedrec.core.errors import RunError

Arrays = dict[str, NDArray[np.generic]]

#: Modes: for the owner alone, and for what is meant for others (still less what the umask takes away).
PRIVATE, PUBLIC = 0o600, 0o644
PRIVATE_FOLDER = 0o700
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def atomic_write(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write a file so that a crash leaves either the old or the new content, never half of it.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(create(temporary, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sweep(path: Path) -> None:
    """Remove what killed calls of `atomic_write` left beside a file; for its only writer."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; an existing one is never replaced.

    Raises:
        RunError: there is one already, or it cannot be written.
    """
    try:
        handle = create(path, PRIVATE)
    except OSError as error:
        raise RunError(
            f"secret {path} cannot be written ({error.strerror}): it is not replaced; remove it if it is not needed"
        ) from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def create(path: Path, mode: int = PRIVATE) -> int:
    """The handle of a new file with this mode from its first byte.

    Raises:
        OSError: something is there already, be it a link to nothing, or it cannot be made.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, mode)


def read_private(path: Path) -> bytes:
    """A file that must be its owner's alone.

    Raises:
        OSError: it cannot be read; ELOOP: it is a symbolic link; EACCES: others can read or write it.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_FOLLOW), "rb") as file:
        if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
            raise OSError(errno.EACCES, "others can read or write it: chmod 600 it, and ask who has read it")
        return file.read()


def refuse_link(path: Path) -> None:
    """Nothing may be opened through a symbolic link.

    Raises:
        OSError: ELOOP: it is one.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link: remove it, none is followed", str(path))


def private_folder(path: Path) -> bool:
    """A folder for its owner alone, made where it is missing; whether others could look into it before.

    Raises:
        OSError: it cannot be made, it is no folder, or it belongs to another account.
    """
    path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
    if os.name != "posix":
        return False
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "it belongs to another account")
    others = bool(stat.S_IMODE(found.st_mode) & 0o077)
    if others:
        path.chmod(PRIVATE_FOLDER)
    return others


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object, mode: int = PRIVATE) -> None:
    """Write a value as indented JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2, sort_keys=True, default=float) + "\n").encode(), mode)


def write_arrays(
    path: Path, arrays: Arrays, header: dict[str, Any] | None = None, mode: int = PRIVATE
) -> None:
    """Write named arrays and a JSON header into one safetensors file, atomically."""
    metadata = {"header": json.dumps(header or {}, sort_keys=True, default=float)}
    atomic_write(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata), mode)


def read_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and header of a file written by `write_arrays`.

    Raises:
        RunError: the file is missing or broken.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            header = json.loads((file.metadata() or {}).get("header", "{}"))
    except Exception as error:
        raise RunError(
            f"{path} cannot be read ({error}): expected a file written by fedrec; restore or retrain"
        ) from error
    return arrays, header
