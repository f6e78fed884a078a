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
        """Ids of those that retention does not keep.

        An event that a clock set ahead has stamped is as old as the next one that came after it and lies in the past;
        without one it is of now.
        """
        ages, after = list[tuple[float, int, str]](), now
        for number, event in reversed(list(enumerate(self._arrived.values()))):
            if event.time <= now and event.stamped:
                after = event.time
            ages.append((event.time if event.time <= now else after, number, event.id))
        ages.sort()
        oldest = -float("inf") if retention.max_age_seconds is None else now - retention.max_age_seconds
        old = bisect.bisect_left(ages, (oldest,))
        surplus = 0 if retention.max_events is None else len(ages) - retention.max_events
        return [name for _, _, name in ages[: max(old, surplus, 0)]]

    def drop(self, ids: Collection[str]) -> int:
        """Take events out; how many were there."""
        lost = self._arrived.keys() & set(ids)
        if lost:
            self._arrived = {name: event for name, event in self._arrived.items() if name not in lost}
            self._events = [event for event in self._events if event.id not in lost]
            self._times = [event.time for event in self._events]
        return len(lost)
