"""The time by which a device judges expiry: it never goes back, so a clock that is put back revives nothing.

What is remembered is the latest time seen, in the store. A clock that was ahead by mistake would make everything look
expired until the true time catches up; so no more is believed than `MAX_AHEAD_SECONDS` past the newest signature that
was accepted, which bounds what such a mistake costs. Out of scope: the clock itself (`platform`).
"""

from __future__ import annotations

import json
from contextlib import suppress

from fedrec.errors import StoreError
from fedrec_client.store.base import Store

RECORD = "latest-time"
MAX_AHEAD_SECONDS = 180 * 86_400.0
#: A later time is written down when it is so much later.
STEP_SECONDS = 3_600.0


def latest_time(store: Store, now: float) -> float:
    """The latest of the device's clock, of what it showed before, and of signatures accepted; seconds since 1970."""
    seen, signed = _read(store)
    if not signed:
        return now
    latest = min(max(now, seen, signed), signed + MAX_AHEAD_SECONDS)
    if latest >= seen + STEP_SECONDS:
        with suppress(StoreError):  # a full disk must not keep a model from serving
            _write(store, latest, signed)
    return max(latest, now)


def note_signed(store: Store, when: float) -> None:
    """Metadata that was signed then has been accepted."""
    seen, signed = _read(store)
    if when > signed:
        _write(store, seen, when)


def _read(store: Store) -> tuple[float, float]:
    data = store.get(RECORD)
    if data is None:
        return 0.0, 0.0
    known = json.loads(data)
    return float(known["seen"]), float(known["signed"])


def _write(store: Store, seen: float, signed: float) -> None:
    store.put(RECORD, json.dumps({"seen": seen, "signed": signed}).encode())
