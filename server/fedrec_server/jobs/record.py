"""Where a job stands, in one file that changes as a whole: what was acknowledged survives a kill at any line.

    created ─▶ running ⇄ paused
                  │ └──▶ failed ─▶ running (resume)
                  ▼
               trained ─▶ published ─▶ running (the next run)
    every state but published of a job that runs once ─▶ aborted

One writer at a time holds a lock for the moment of the change; a change that was made already is not made again.
Out of scope: doing what a state says (`work`).
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedrec.core.errors import RunError
from fedrec.core.files import sweep, write_json

Stand = Literal["created", "running", "paused", "trained", "published", "failed", "aborted"]
RECORD, _LOCK = "job.json", ".lock"
#: From which states each one can be reached.
BEFORE: dict[Stand, tuple[Stand, ...]] = {
    "created": (),
    "running": ("created", "paused", "published", "failed"),
    "paused": ("running",),
    "trained": ("running", "paused", "failed"),
    "published": ("trained",),
    "failed": ("running", "paused"),
    "aborted": ("created", "running", "paused", "trained", "published", "failed"),
}


@dataclass(frozen=True)
class Record:
    """Of a job.

    Attributes:
        population: whose devices.
        registry, keys: folders, absolute.
        created: seconds since 1970.
        state: see the module's text.
        since: when it came into it.
        run: number of the run, from 1; 0: none yet.
        started: when the run started.
        next_start: when the next run starts; None: none is planned.
        version: of the model that was published last; 0: none.
        error: what went wrong last, with what to do; empty: nothing since the last progress.
    """

    population: str
    registry: str
    keys: str
    created: float
    state: Stand = "created"
    since: float = 0.0
    run: int = 0
    started: float = 0.0
    next_start: float | None = None
    version: int = 0
    error: str = ""


def read_record(folder: Path) -> Record:
    """Of a job's folder.

    Raises:
        RunError: there is none, or it is broken.
    """
    path = folder / RECORD
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise RunError(f"no job in {folder}: `fedrec-server job list` shows those that are") from error
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it from a backup") from error


def write_record(folder: Path, record: Record) -> None:
    """Of a new job."""
    write_json(folder / RECORD, asdict(record))


def advance(folder: Path, to: Stand, now: float, **changes: Any) -> Record:
    """Bring a job into a state; one that is in it already stays as it is.

    Args:
        folder: of the job.
        to: the state.
        now: seconds since 1970.
        changes: other fields of the record.

    Raises:
        RunError: the state cannot be reached from where the job stands.
    """
    with _alone(folder):
        before = read_record(folder)
        if before.state == to:
            return before
        if before.state not in BEFORE[to]:
            wanted = " or ".join(BEFORE[to])
            raise RunError(
                f"job {folder.name[:8]} is {before.state}: only one that is {wanted} can become {to}"
            )
        after = replace(before, **{"error": ""} | changes | {"state": to, "since": now})
        write_record(folder, after)
        return after


def note_error(folder: Path, error: str) -> None:
    """Keep what went wrong last; empty: it is over."""
    with _alone(folder):
        before = read_record(folder)
        if before.error != error:
            write_record(folder, replace(before, error=error))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer, in this process and in any other."""
    try:
        with (folder / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            sweep(folder / RECORD)
            yield
    except FileNotFoundError as error:
        raise RunError(f"no job in {folder}: `fedrec-server job list` shows those that are") from error
