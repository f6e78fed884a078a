"""The log of what happens, for everybody who looks at the page, and as a text file.

It says which device did what and what left it. Titles stand only where a person's own list changed, which this page
shows anyway; a real app would keep even those on the device.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

KEPT = 300


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        number: rising from 1.
        clock: time of day.
        who: the device of a user, or "Training".
        side: "device" or "service": where it happened.
        text: what.
    """

    number: int
    clock: str
    who: str
    side: str
    text: str


class Journal:
    """Safe for several threads.

    Args:
        path: of the text file, which is added to; for its owner only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._number = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))

    def device(self, who: str, text: str) -> None:
        """Something happened on somebody's device."""
        self._add(f"{who}'s device", "device", text)

    def service(self, who: str, text: str) -> None:
        """Something happened where the service runs."""
        self._add(who, "service", text)

    @property
    def last(self) -> int:
        """Number of the last entry; 0: none."""
        return self._number

    def newest(self, n: int = 40) -> list[Entry]:
        """The last entries, newest first."""
        with self._lock:
            return list(self._entries)[: -n - 1 : -1]

    def _add(self, who: str, side: str, text: str) -> None:
        with self._lock:
            self._number += 1
            entry = Entry(self._number, time.strftime("%H:%M:%S"), who, side, text)
            self._entries.append(entry)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{entry.clock}  {entry.who:<16} {entry.text}\n")
