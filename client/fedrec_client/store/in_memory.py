"""A store that keeps nothing: for tests, and for users who want no trace on the device."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedrec_client.store._contents import AnswersFromMemory, Contents
from fedrec_client.store.base import Receipt, Retention
from fedrec_client.store.events import Event
from fedrec_client.store.timeline import Timeline


class MemoryStore(AnswersFromMemory):
    """See `Store`; everything is gone when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._contents = Contents()
        self._depth = 0

    def add_event(self, event: Event) -> bool:
        """See `Store`."""
        with self._used():
            return self._contents.timeline.add(event)

    def put(self, name: str, value: bytes) -> None:
        """See `Store`."""
        with self._used():
            self._contents.records[name] = bytes(value)

    def remove(self, name: str) -> None:
        """See `Store`."""
        with self._used():
            self._contents.records.pop(name, None)

    def append(self, log: str, value: bytes) -> int:
        """See `Store`."""
        with self._used():
            self._contents.logs.setdefault(log, []).append(bytes(value))
            return len(self._contents.logs[log])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Store`."""
        with self._used():
            before = None if self._depth else self._contents.copy()
            self._depth += 1
            try:
                yield
            except BaseException:
                if before is not None:
                    self._contents = before
                raise
            finally:
                self._depth -= 1

    def expire(self, retention: Retention, now: float) -> int:
        """See `Store`."""
        with self._used():
            return self._contents.timeline.drop(self._contents.timeline.expired(retention, now))

    def delete_events(self, since: float | None = None, item: str | None = None) -> int:
        """See `Store`."""
        with self._used():
            chosen = self._contents.timeline.select(since, None)
            return self._contents.timeline.drop([event.id for event in chosen if item in (None, event.item)])

    def erase(self, now: float, records: Mapping[str, bytes], logs: Mapping[str, Sequence[bytes]]) -> Receipt:
        """See `Store`."""
        with self._used():
            gone = self._contents
            self._contents = Contents(
                Timeline(), dict(records), {name: list(entries) for name, entries in logs.items()}
            )
        counts = len(gone.timeline), len(gone.records), gone.entries
        return Receipt(secrets.token_hex(8), now, *counts, key_destroyed=True)

    def describe(self) -> dict[str, Any]:
        """See `Store`."""
        with self._used():
            return {
                "kind": "memory",
                "key": "none: nothing is written",
                "older_copies": "none: nothing is written",
                "events": len(self._contents.timeline),
                "records": len(self._contents.records),
                "entries": self._contents.entries,
            }

    def close(self) -> None:
        """See `Store`."""

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            yield
