"""Files that are never half-written: atomic replacement, and states as safetensors with a JSON header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fedrec.errors import RunError

Arrays = dict[str, NDArray[np.generic]]


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old or the new content, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; an existing one is never replaced.

    Raises:
        RunError: there is one already, or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise RunError(
            f"secret {path} cannot be written ({error.strerror}): it is not replaced; remove it if it is not needed"
        ) from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2, sort_keys=True, default=float) + "\n").encode())


def write_arrays(path: Path, arrays: Arrays, header: dict[str, Any] | None = None) -> None:
    """Write named arrays and a JSON header into one safetensors file, atomically."""
    metadata = {"header": json.dumps(header or {}, sort_keys=True, default=float)}
    atomic_write(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata))


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
