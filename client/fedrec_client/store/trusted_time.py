"""Which time it is at least, on a device whose clock can be set at will.

Three times lie in the store, in one record:

    signed     of the newest signature that this device has accepted: a true time has passed it
    floor      what the clock was believed to be, never less than `signed`: what has expired by it stays expired
    believed   what retention goes by: it follows the clock back, and ahead by a step only

A clock that is put back is not followed by `floor`, so that nothing which had expired is valid again. A clock that is
ahead moves `floor` by a week for each opening of the store, and by no more than the time that really passes while it
is open, and at most `MAX_AHEAD_SECONDS` past the newest signature; so a clock that was ahead once is forgotten within
a week, and one that was ahead for long costs updates for so long at most.

An update that was refused because what is signed was out of its time is remembered in a record of its own, with the
clock of then: for what was signed until then it stays that late, whatever the clock says afterwards. Anything signed
later is checked anew, so that this costs no more than the wait for the next signature. Out of scope: whose
signatures count (`trusted_metadata`, `training`), periods of the privacy budget (`participation`).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace

from fedrec.core.errors import StoreCorrupt
from fedrec_client.store.base import Store

RECORD, REFUSED = "clock", "refused"
#: A clock may be so much behind the one of who signed.
CLOCK_SKEW_SECONDS = 300.0
#: So far ahead one opening of the store may move what is believed.
STEP_SECONDS = 7 * 86_400.0
#: So far past the newest signature the floor may go: longer than models and tasks are current, and no longer, because
#: metadata that ends before the floor is refused until the true time has come near it.
MAX_AHEAD_SECONDS = 180 * 86_400.0
#: What is believed is written down again once it has moved by so much: the vault is told of each writing.
_GRAIN_SECONDS = 3600.0


@dataclass(frozen=True)
class Times:
    """See the module; seconds since 1970, -inf where nothing is known."""

    signed: float = -math.inf
    floor: float = -math.inf
    believed: float = -math.inf

    def accept(self, signed_at: float) -> Times:
        """After a signature of that time was accepted."""
        signed = max(self.signed, signed_at)
        return replace(self, signed=signed, floor=min(max(self.floor, signed), signed + MAX_AHEAD_SECONDS))

    def step(self, clock: float, seconds: float = STEP_SECONDS) -> Times:
        """After a look at the clock that may move what is believed by so many seconds."""
        believed = clock if self.believed == -math.inf else min(clock, self.believed + seconds)
        floor = max(self.floor, min(clock, self.floor + seconds, self.signed + MAX_AHEAD_SECONDS))
        return replace(self, believed=believed, floor=floor)


class TrustedTime:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def times(self) -> Times:
        """As they are in the store."""
        return read_times(self._store)

    def now(self, clock: float) -> float:
        """The clock, or the floor where the clock is behind it: by this, things expire."""
        return max(clock, self.times.floor)

    def accept(self, signed_at: float) -> None:
        """A signed document of that time has been accepted; older ones change nothing."""
        self._write(self.times.accept(signed_at))

    def refuse(self, signed_at: float, clock: float) -> None:
        """What was signed until then was out of its time under this clock, and nothing newer could be had."""
        signed, then = self._refused
        if math.isfinite(signed_at) and (signed_at > signed or clock > then):
            later = {
                "signed": max(signed, signed_at),
                "time": clock if signed_at > signed else max(clock, then),
            }
            self._store.put(REFUSED, json.dumps(later).encode())

    def known_late(self, signed_at: float) -> float:
        """The clock under which what was signed then has been refused; -inf: it has not been."""
        signed, then = self._refused
        return then if signed_at <= signed else -math.inf

    def step(self, clock: float, seconds: float = STEP_SECONDS) -> float:
        """Look at the clock; the time by which retention goes."""
        times = self.times.step(clock, seconds)
        self._write(times)
        return times.believed

    @property
    def _refused(self) -> tuple[float, float]:
        known = json.loads(self._store.get(REFUSED) or b"{}")
        return known.get("signed", -math.inf), known.get("time", -math.inf)

    def _write(self, times: Times) -> None:
        known = self.times
        moved = any(
            abs(getattr(times, name) - getattr(known, name)) >= _GRAIN_SECONDS
            for name in ("floor", "believed")
        )
        if moved or times.signed != known.signed:
            plain = {name: time for name, time in asdict(times).items() if math.isfinite(time)}
            self._store.put(RECORD, json.dumps(plain).encode())


def signed_time(store: Store) -> float:
    """Of the newest signature that this device has accepted; -inf: none yet."""
    return read_times(store).signed


def read_times(store: Store) -> Times:
    """Of a store.

    Raises:
        StoreCorrupt: the record is not one.
    """
    try:
        return Times(**{name: float(time) for name, time in json.loads(store.get(RECORD) or b"{}").items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreCorrupt(
            "the record of the clock cannot be read: open the store with repair=True"
        ) from error
