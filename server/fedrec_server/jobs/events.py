"""What happened in a job, a JSON line each with its time; the file is kept small by turning it over.

Reasons of devices are counted by their sentence; nothing names a device. Out of scope: the record of the rounds,
which is the coordinator's (`rounds.jsonl` of a run).
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EVENTS, EARLIER = "events.jsonl", "events.1.jsonl"
MOST_BYTES = 1 << 20
MOST_REASONS = 8
_LONGEST = 160
_NUMBER = re.compile(r"\d+")


class Events:
    """Of one job; written by its worker alone.

    Args:
        folder: of the job.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._earlier, self._clock = folder / EVENTS, folder / EARLIER, clock

    def note(self, what: str, **facts: Any) -> None:
        """Append an event; what cannot be written is not worth ending a job for."""
        line = json.dumps({"time": round(self._clock(), 3), "what": what} | facts, default=float)
        try:
            if self._path.exists() and self._path.stat().st_size + len(line) > MOST_BYTES:
                self._path.replace(self._earlier)
            with self._path.open("a") as file:
                file.write(line + "\n")
        except OSError:
            return

    def last(self, count: int = 10) -> list[dict[str, Any]]:
        """The newest events, oldest first."""
        return read_events(self._path.parent)[-count:]


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events that are kept, oldest first; a line that was cut off is passed over."""
    found = []
    for name in (EARLIER, EVENTS):
        path = folder / name
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                found.append(dict(json.loads(line)))
            except ValueError:
                continue
    return found


def reasons(failures: Mapping[str, str]) -> dict[str, int]:
    """How often each reason was given, the most frequent first; numbers in them do not tell reasons apart."""
    found = Counter(_NUMBER.sub("#", why)[:_LONGEST] for why in failures.values())
    return dict(found.most_common(MOST_REASONS))
