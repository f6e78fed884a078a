"""Events in the order of their times, in memory: what both stores answer from.

Out of scope: where they came from and whether they are on disk.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable

from fedrec_client.events import Event, EventType
from fedrec_client.store.base import Retention


class Timeline:
    """Events, oldest first; those of one time in the order in which they came."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._times: list[float] = []
        self._ids: set[str] = set()

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    @classmethod
    def of(cls, events: Iterable[Event]) -> Timeline:
        """Of events in the order in which they came."""
        made = cls()
        made._events = sorted(events, key=lambda event: event.time)
        made._times = [event.time for event in made._events]
        made._ids = {event.id for event in made._events}
        return made

    def add(self, event: Event) -> bool:
        """Put an event in its place; False when its id is there."""
        if event.id in self._ids:
            return False
        place = bisect.bisect_right(self._times, event.time)
        self._events.insert(place, event)
        self._times.insert(place, event.time)
        self._ids.add(event.id)
        return True

    def select(self, since: float | None, types: Collection[EventType] | None) -> list[Event]:
        """Those from a time on, of some types."""
        start = 0 if since is None else bisect.bisect_left(self._times, since)
        chosen = self._events[start:]
        return chosen if types is None else [event for event in chosen if event.type in types]

    def expired(self, retention: Retention, now: float) -> list[str]:
        """Ids of those that retention does not keep."""
        oldest = -float("inf") if retention.max_age_seconds is None else now - retention.max_age_seconds
        old = bisect.bisect_left(self._times, oldest)
        surplus = 0 if retention.max_events is None else len(self._events) - retention.max_events
        return [event.id for event in self._events[: max(old, surplus, 0)]]

    def drop(self, ids: Collection[str]) -> int:
        """Take events out; how many were there."""
        lost = self._ids & set(ids)
        if lost:
            self._events = [event for event in self._events if event.id not in lost]
            self._times = [event.time for event in self._events]
            self._ids -= lost
        return len(lost)
