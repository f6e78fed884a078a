"""What a store knows, in memory: events, named records, logs; both kinds of store answer from it.

Out of scope: what is on disk, and who may call.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from fedrec_client.store.events import Event, EventType
from fedrec_client.store.timeline import Timeline


@dataclass
class Contents:
    """See the module."""

    timeline: Timeline = field(default_factory=Timeline)
    records: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, list[bytes]] = field(default_factory=dict)

    def copy(self) -> Contents:
        """To go back to."""
        return Contents(
            copy.copy(self.timeline), dict(self.records), {name: list(log) for name, log in self.logs.items()}
        )

    @property
    def entries(self) -> int:
        """Of all logs."""
        return sum(map(len, self.logs.values()))


class AnswersFromMemory(abc.ABC):
    """The half of `Store` that only reads."""

    _contents: Contents

    @abc.abstractmethod
    def _used(self) -> AbstractContextManager[None]:
        """Alone, and refused on a closed store."""

    def events(
        self, *, since: float | None = None, types: Collection[EventType] | None = None
    ) -> list[Event]:
        """See `Store`."""
        with self._used():
            return self._contents.timeline.select(since, types)

    def arrivals(self) -> list[Event]:
        """See `Store`."""
        with self._used():
            return self._contents.timeline.arrivals()

    def get(self, name: str) -> bytes | None:
        """See `Store`."""
        with self._used():
            return self._contents.records.get(name)

    def names(self, prefix: str = "") -> list[str]:
        """See `Store`."""
        with self._used():
            return sorted(name for name in self._contents.records if name.startswith(prefix))

    def entries(self, log: str) -> list[bytes]:
        """See `Store`."""
        with self._used():
            return list(self._contents.logs.get(log, []))

    def logs(self) -> list[str]:
        """See `Store`."""
        with self._used():
            return sorted(self._contents.logs)
