"""Sums of counters that devices send with noise on them: nothing else is kept, not even for a moment on disk.

    FOLDER/metrics.json    by day, model version and name: sum and number of reports

A report is added and forgotten; days are the finest time there is. Out of scope: the noise, which devices add.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrec.errors import RegistryError
from fedrec.wire.files import write_json

#: What devices may report; see `fedrec_client.metrics`.
NAMES = frozenset({"impressions", "clicks", "hides"})
MOST = 10_000.0
DAY = 86_400
DAYS_KEPT = 400
WRITE_SECONDS = 5.0


class MetricSums:
    """The sums of one population.

    Args:
        folder: of the population's registry.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.json"
        self._lock = threading.Lock()
        self._written = 0.0
        try:
            self._sums: dict[str, Any] = json.loads(self._path.read_text())
        except FileNotFoundError:
            self._sums = {}
        except (OSError, ValueError) as error:
            raise RegistryError(
                f"{self._path} cannot be read ({error}): restore it, or move it away"
            ) from error

    def add(self, version: int, counters: Mapping[str, float]) -> bool:
        """Add a report; False when it is none."""
        if not counters or set(counters) - NAMES or not all(math.isfinite(v) for v in counters.values()):
            return False
        with self._lock:
            today = str(int(time.time() // DAY))
            for day in sorted(self._sums)[:-DAYS_KEPT]:
                del self._sums[day]
            of_day = self._sums.setdefault(today, {}).setdefault(str(version), {})
            for name, value in counters.items():
                total, reports = of_day.get(name, (0.0, 0))
                of_day[name] = [total + min(max(value, -MOST), MOST), reports + 1]
            if time.monotonic() - self._written > WRITE_SECONDS:
                self._write()
        return True

    def close(self) -> None:
        """Write what is not written."""
        with self._lock:
            if self._sums:
                self._write()

    def _write(self) -> None:
        write_json(self._path, self._sums)
        self._written = time.monotonic()
