"""What the SDK keeps on a device: events, a few named records, append-only logs.

A store is the only place where personal data lies. What a call has acknowledged survives a killed process, a full
disk, a power cut; what it has not is not there at all. What a call has deleted is gone: no file, and no copy of a
file from before, opens to it under the key that the store has afterwards. Two kinds: `SqliteStore` on disk, every row
sealed, and `MemoryStore` for tests and for users who want nothing kept. Out of scope: what the values mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from fedrec_client.store.events import Event, EventType


@dataclass(frozen=True)
class Receipt:
    """What a deletion did, for the user who asked for it.

    Attributes:
        id: random, to name the deletion in a log.
        time: seconds since 1970.
        events, records, entries: how many were deleted.
        key_destroyed: the key under which it was sealed is gone: copies of the file cannot be read any more, also
            those in backups, unless the key was in them too.
        remaining: what was not deleted and why, e.g. that published sums cannot be taken back.
    """

    id: str
    time: float
    events: int
    records: int
    entries: int
    key_destroyed: bool
    remaining: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retention:
    """Which events are kept.

    Attributes:
        max_age_seconds: older ones are deleted; None: any age.
        max_events: the newest so many are kept; None: all.
    """

    max_age_seconds: float | None = 400 * 86400.0
    max_events: int | None = 50_000


class Store(Protocol):
    """Safe for several threads. Every method may raise StoreError (StoreLocked, StoreCorrupt, StoreFull)."""

    def add_event(self, event: Event) -> bool:
        """Keep an event; False when one with its id is there already, which then stays."""
        ...

    def events(
        self, *, since: float | None = None, types: Collection[EventType] | None = None
    ) -> list[Event]:
        """Events, oldest first (by time, then in the order they came)."""
        ...

    def arrivals(self) -> list[Event]:
        """Events in the order they came, whatever their times."""
        ...

    def get(self, name: str) -> bytes | None:
        """A named record."""
        ...

    def put(self, name: str, value: bytes) -> None:
        """Write a named record in the place of an earlier one."""
        ...

    def remove(self, name: str) -> None:
        """Delete a named record, if there is one."""
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Names of the records, sorted."""
        ...

    def append(self, log: str, value: bytes) -> int:
        """Add an entry to a log; its number, from 1. On disk when this returns."""
        ...

    def entries(self, log: str) -> list[bytes]:
        """All entries of a log, in order."""
        ...

    def logs(self) -> list[str]:
        """Names of the logs that have entries, sorted."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """All of what is written inside becomes durable at the end, or nothing of it."""
        ...

    def expire(self, retention: Retention, now: float) -> int:
        """Delete events that retention does not keep; how many."""
        ...

    def delete_events(self, since: float | None = None, item: str | None = None) -> int:
        """Delete events, those from `since` on, or all, and of one item, or of any; how many."""
        ...

    def erase(self, now: float, records: Mapping[str, bytes], logs: Mapping[str, Sequence[bytes]]) -> Receipt:
        """Delete everything, and go on with these records and logs alone."""
        ...

    def describe(self) -> dict[str, Any]:
        """For status and bug reports: kind, schema, bytes, counts, how the key is kept. No item, no event."""
        ...

    def close(self) -> None:
        """Release files; nothing is lost."""
        ...
