"""What the SDK must know of the device it runs on; an app's platform answers, the SDK decides.

Out of scope: what follows from the answers (`eligibility`), and when to ask: the SDK never wakes up by itself.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Protocol


class Platform(Protocol):
    """Answers are of now; None: the platform cannot tell, which counts as "no" where it matters."""

    def charging(self) -> bool | None:
        """Whether the device is on mains power."""
        ...

    def idle(self) -> bool | None:
        """Whether no one is using the device."""
        ...

    def unmetered(self) -> bool | None:
        """Whether traffic costs nothing."""
        ...

    def free_bytes(self, folder: Path) -> int:
        """Room left where the SDK keeps its files."""
        ...

    def now(self) -> float:
        """Seconds since 1970; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...


class SystemPlatform:
    """A computer: mains power as Linux tells it, everything else unknown until the app overrides it."""

    _SUPPLIES = Path("/sys/class/power_supply")

    def charging(self) -> bool | None:
        """See `Platform`; a machine without a battery is on mains power."""
        supplies = list(self._SUPPLIES.glob("*")) if self._SUPPLIES.is_dir() else []
        kinds = [(_text(path / "type"), path) for path in supplies]
        if not any(kind == "Battery" for kind, _ in kinds):
            return True if self._SUPPLIES.is_dir() else None
        return any(_text(path / "online") == "1" for kind, path in kinds if kind != "Battery")

    def idle(self) -> bool | None:
        """See `Platform`."""
        return None

    def unmetered(self) -> bool | None:
        """See `Platform`."""
        return None

    def free_bytes(self, folder: Path) -> int:
        """See `Platform`."""
        return shutil.disk_usage(folder).free

    def now(self) -> float:
        """See `Platform`."""
        return time.time()

    def monotonic(self) -> float:
        """See `Platform`."""
        return time.monotonic()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
