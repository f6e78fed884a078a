"""Who did what to a registry, when: one JSON line each, only ever appended.

A crash can cut the last line short; what is cut was never acknowledged, and the next entry takes its place.
Out of scope: proof against someone who may write the file.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from pathlib import Path
from typing import Any

from fedrec.core.errors import RegistryError


def read_history(path: Path) -> list[dict[str, Any]]:
    """All entries, oldest first.

    Raises:
        RegistryError: a line is broken.
    """
    try:
        *whole, _cut = path.read_text().split("\n")
        return [dict(json.loads(line)) for line in whole]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RegistryError(f"{path} cannot be read ({error}): restore it from a backup") from error


def append_history(path: Path, what: str, **facts: Any) -> None:
    """Append an entry, durable on return; only one writer at a time may do so.

    Raises:
        OSError: it cannot be written.
    """
    entry = {"what": what, "time": round(time.time()), "by": _who()} | facts
    path.touch()
    with path.open("r+b") as file:
        file.seek(file.read().rfind(b"\n") + 1)
        file.truncate()
        file.write(json.dumps(entry, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _who() -> str:
    """The name of the account, or its number where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
