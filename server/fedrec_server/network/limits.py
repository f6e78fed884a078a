"""How much one address, one app and all of them together may ask for, in bounded memory.

A device is known here by its network address alone, which is forgotten with the process; an app by its certificate.
Out of scope: ending what takes too long (`watchdog`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of a service.

    Attributes:
        calls_per_second, burst: of one address.
        addresses: remembered at once; the one that was silent longest is forgotten first.
        app_calls_per_second, app_burst: of all devices that show the same certificate.
        threads: that serve calls; so many are served at once, of all addresses.
        calls_per_address: at once.
        max_waiting: calls that may wait for a thread; more are refused.
        downloads_per_address, downloads: at once, of the calls that are served.
        connections, connections_per_address: at once.
        unauthenticated_per_address: of these, that have made no call.
        opened_per_second, opened_burst: new connections of one address.
        expected_devices: that check in.
        check_ins_per_second: of all devices together; paces them: everyone comes once per
            expected_devices / check_ins_per_second seconds.
        min_retry_seconds: but not sooner.
        handshake_seconds, message_seconds: until a connection is a good one, until the message of a call has come.
        piece_seconds, download_seconds: until a piece of a file is taken, until all are.
        max_connection_seconds: a connection is closed after so long, whoever holds it.
        reports_per_address, reports_per_day: of counters that are counted a day, for one population; by as many
            reports one liar can move a sum.
    """

    calls_per_second: float = 20.0
    burst: int = 60
    addresses: int = 10_000
    app_calls_per_second: float = 500.0
    app_burst: int = 2_000
    threads: int = 128
    calls_per_address: int = 16
    max_waiting: int = 512
    downloads_per_address: int = 8
    downloads: int = 64
    connections: int = 2_048
    connections_per_address: int = 256
    unauthenticated_per_address: int = 32
    opened_per_second: float = 50.0
    opened_burst: int = 300
    expected_devices: int = 1_000
    check_ins_per_second: float = 10.0
    min_retry_seconds: float = 60.0
    handshake_seconds: float = 10.0
    message_seconds: float = 5.0
    piece_seconds: float = 20.0
    download_seconds: float = 600.0
    max_connection_seconds: float = 900.0
    reports_per_address: int = 1
    reports_per_day: int = 100_000

    @property
    def retry_seconds(self) -> tuple[float, float]:
        """Between which a device is to come back; spread so that devices do not come together."""
        every = max(self.expected_devices / self.check_ins_per_second, self.min_retry_seconds)
        return every, 2 * every


class Buckets:
    """One bucket of calls per key.

    Args:
        per_second, burst: calls of one key.
        keys: remembered at once.
        clock: seconds that never jump.
    """

    def __init__(
        self, per_second: float, burst: int, keys: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._keys, self._clock = per_second, burst, keys, clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> bool:
        """Whether one more call is within the limits."""
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(key, (float(self._burst), now))
            left = min(self._burst, left + (now - then) * self._per_second)
            allowed = left >= 1
            self._left[key] = (left - allowed, now)
            while len(self._left) > self._keys:
                self._left.popitem(last=False)
            return allowed


class Places:
    """So many at once, of one key and of all; no one waits."""

    def __init__(self, per_key: int, total: int) -> None:
        self._per_key, self._total = per_key, total
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken now."""
        with self._lock:
            return self._taken.total()

    @contextmanager
    def one(self, key: str) -> Iterator[bool]:
        """Whether there was a free one; it is held until the end."""
        with self._lock:
            free = self._taken[key] < self._per_key and self._taken.total() < self._total
            self._taken[key] += free
        try:
            yield free
        finally:
            with self._lock:
                self._taken[key] -= free
                if not self._taken[key]:
                    del self._taken[key]
