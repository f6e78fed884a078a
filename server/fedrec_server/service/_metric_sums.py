"""Sums of counters that devices send with noise on them: nothing else is kept, not even for a moment on disk.

    FOLDER/metrics.json    by day, model version and name: sum and number of reports

A report is added and forgotten; days are the finest time there is. Whether a report is honest cannot be told: each
counts no more than an honest one can (`fedrec.wire.counters`). Out of scope: the noise, which devices add, and how
many reports are taken (`quotas`).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrec.core.errors import RegistryError
from fedrec.core.files import write_json
from fedrec.wire.counters import checked

log = logging.getLogger(__name__)

DAY = 86_400
DAYS_KEPT = 400
#: sum and number of reports, by name, by model version, by day
Sums = dict[str, dict[str, dict[str, list[float]]]]


class MetricSums:
    """The sums of one population, safe for several threads.

    Args:
        folder: of the population's registry.

    Raises:
        RegistryError: the file there is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.json"
        self._lock = threading.Lock()
        self._unwritten = False
        try:
            self._sums = _checked(json.loads(self._path.read_text()))
        except FileNotFoundError:
            self._sums = {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"{self._path} cannot be read ({error}): restore it, or move it away"
            ) from error

    def add(self, version: int, counters: Mapping[str, float]) -> bool:
        """Add a report; False when it is none."""
        try:
            counters = checked(counters)
        except ValueError:
            return False
        with self._lock:
            of_day = self._sums.setdefault(str(int(time.time() // DAY)), {}).setdefault(str(version), {})
            for day in sorted(self._sums, key=int)[:-DAYS_KEPT]:
                del self._sums[day]
            for name, value in counters.items():
                total, reports = of_day.get(name, (0.0, 0))
                of_day[name] = [total + value, reports + 1]
            self._unwritten = True
        return True

    def write(self) -> None:
        """Write what is not written; where that fails it is said, and tried again the next time."""
        with self._lock:
            if not self._unwritten:
                return
            try:
                write_json(self._path, self._sums)
                self._unwritten = False
            except OSError as error:
                log.error("%s cannot be written (%s): sums wait in memory", self._path, error)


def _checked(content: Any) -> Sums:
    return {
        str(int(day)): {
            str(int(version)): {name: [float(total), int(reports)] for name, (total, reports) in sums.items()}
            for version, sums in versions.items()
        }
        for day, versions in content.items()
    }
