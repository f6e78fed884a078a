"""A store that keeps nothing: for tests, and for people who want no trace on the device."""

from __future__ import annotations

import contextlib
import copy
import secrets
import threading
from collections.abc import Collection, Iterator
from typing import Any

from fedrec.errors import StoreError
from fedrec_client.events import Event, EventType
from fedrec_client.store.base import Receipt, Retention
from fedrec_client.store.timeline import Timeline


class MemoryStore:
    """See `Store`; everything is gone when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._events = Timeline()
        self._records: dict[str, bytes] = {}
        self._logs: dict[str, list[bytes]] = {}
        self._depth = 0
        self._destroyed = False

    def add_event(self, event: Event) -> bool:
        """See `Store`."""
        with self._used():
            return self._events.add(event)

    def events(
        self, *, since: float | None = None, types: Collection[EventType] | None = None
    ) -> list[Event]:
        """See `Store`."""
        with self._used():
            return self._events.select(since, types)

    def get(self, name: str) -> bytes | None:
        """See `Store`."""
        with self._used():
            return self._records.get(name)

    def put(self, name: str, value: bytes) -> None:
        """See `Store`."""
        with self._used():
            self._records[name] = bytes(value)

    def remove(self, name: str) -> None:
        """See `Store`."""
        with self._used():
            self._records.pop(name, None)

    def names(self, prefix: str = "") -> list[str]:
        """See `Store`."""
        with self._used():
            return sorted(name for name in self._records if name.startswith(prefix))

    def append(self, log: str, value: bytes) -> int:
        """See `Store`."""
        with self._used():
            self._logs.setdefault(log, []).append(bytes(value))
            return len(self._logs[log])

    def entries(self, log: str) -> list[bytes]:
        """See `Store`."""
        with self._used():
            return list(self._logs.get(log, []))

    def logs(self) -> list[str]:
        """See `Store`."""
        with self._used():
            return sorted(self._logs)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Store`."""
        with self._used():
            before = copy.deepcopy((self._events, self._records, self._logs)) if not self._depth else None
            self._depth += 1
            try:
                yield
            except BaseException:
                if before is not None:
                    self._events, self._records, self._logs = before
                raise
            finally:
                self._depth -= 1

    def expire(self, retention: Retention, now: float) -> int:
        """See `Store`."""
        with self._used():
            return self._events.drop(self._events.expired(retention, now))

    def delete_events(self, since: float | None = None) -> int:
        """See `Store`."""
        with self._used():
            return self._events.drop([event.id for event in self._events.select(since, None)])

    def destroy(self, now: float) -> Receipt:
        """See `Store`."""
        with self._used():
            counts = (len(self._events), len(self._records), sum(map(len, self._logs.values())))
            self._events, self._records, self._logs = Timeline(), {}, {}
            self._destroyed = True
        return Receipt(secrets.token_hex(8), now, *counts, key_destroyed=True)

    def describe(self) -> dict[str, Any]:
        """See `Store`."""
        with self._used():
            return {
                "kind": "memory",
                "key": "none: nothing is written",
                "events": len(self._events),
                "records": len(self._records),
                "entries": sum(map(len, self._logs.values())),
            }

    def close(self) -> None:
        """See `Store`."""

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            if self._destroyed:
                raise StoreError("this store was destroyed: open a new one")
            yield
