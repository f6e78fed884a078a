"""Events in the order of their times, in memory: what both stores answer from.

Out of scope: where they came from and whether they are on disk.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable

from fedrec_client.store.base import Retention
from fedrec_client.store.events import Event, EventType


def in_order(arrived: Iterable[Event], now: float) -> list[tuple[float, Event]]:
    """Events in the order in which they count, each with the time that gives it its place.

    Events that this device's clock has stamped keep the order in which they came: none is placed before an earlier
    one, although the clock was put back, and one from the future is placed with the next that is not. So a word told
    while the clock was wrong neither beats a later one nor is lost. A time that the app gives is the app's own word.

    Args:
        arrived: in the order in which they came.
        now: seconds since 1970.
    """
    events, latest, after = list(arrived), -math.inf, now
    times = [event.time for event in events]
    for place, event in enumerate(events):
        if event.stamped and event.time <= now:
            times[place] = latest = max(latest, event.time)
    for place in reversed(range(len(events))):
        if events[place].stamped:
            times[place] = after = min(times[place], after)
    return sorted(zip(times, events, strict=True), key=lambda each: each[0])


class Timeline:
    """Events, oldest first; those of one time in the order in which they came."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._times: list[float] = []
        self._arrived: dict[str, Event] = {}

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._arrived

    def __copy__(self) -> Timeline:
        made = Timeline()
        made._events, made._times, made._arrived = list(self._events), list(self._times), dict(self._arrived)
        return made

    @classmethod
    def of(cls, events: Iterable[Event]) -> Timeline:
        """Of events in the order in which they came; the first of an id stays."""
        made = cls()
        for event in events:
            made._arrived.setdefault(event.id, event)
        made._events = sorted(made._arrived.values(), key=lambda event: event.time)
        made._times = [event.time for event in made._events]
        return made

    def add(self, event: Event) -> bool:
        """Put an event in its place; False when its id is there."""
        if event.id in self._arrived:
            return False
        place = bisect.bisect_right(self._times, event.time)
        self._events.insert(place, event)
        self._times.insert(place, event.time)
        self._arrived[event.id] = event
        return True

    def select(self, since: float | None, types: Collection[EventType] | None) -> list[Event]:
        """Those from a time on, of some types."""
        start = 0 if since is None else bisect.bisect_left(self._times, since)
        chosen = self._events[start:]
        return chosen if types is None else [event for event in chosen if event.type in types]

    def arrivals(self) -> list[Event]:
        """All, in the order in which they came."""
        return list(self._arrived.values())

    def expired(self, retention: Retention, now: float) -> list[str]:
        """Ids of those that retention does not keep, by the times of `in_order`."""
        placed = in_order(self._arrived.values(), now)
        oldest = -float("inf") if retention.max_age_seconds is None else now - retention.max_age_seconds
        old = bisect.bisect_left(placed, oldest, key=lambda each: each[0])
        surplus = 0 if retention.max_events is None else len(placed) - retention.max_events
        return [event.id for _, event in placed[: max(old, surplus, 0)]]

    def drop(self, ids: Collection[str]) -> int:
        """Take events out; how many were there."""
        lost = self._arrived.keys() & set(ids)
        if lost:
            self._arrived = {name: event for name, event in self._arrived.items() if name not in lost}
            self._events = [event for event in self._events if event.id not in lost]
            self._times = [event.time for event in self._events]
        return len(lost)
