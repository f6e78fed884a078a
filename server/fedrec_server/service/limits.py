"""How much one address and all of them together may ask for: token buckets, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of a service.

    Attributes:
        calls_per_second, burst: of one address.
        addresses: remembered at once; the one that was silent longest is forgotten first.
        downloads: at once, of all addresses.
        expected_devices: that check in.
        check_ins_per_second: of all devices together; paces them: everybody comes once per
            expected_devices / check_ins_per_second seconds.
        min_retry_seconds: but not sooner.
        threads: that serve calls.
        max_calls: that may wait for one, beside those.
        max_connection_seconds: a connection is closed after so long, whoever holds it.
    """

    calls_per_second: float = 20.0
    burst: int = 60
    addresses: int = 10_000
    downloads: int = 12
    expected_devices: int = 1_000
    check_ins_per_second: float = 10.0
    min_retry_seconds: float = 60.0
    threads: int = 16
    max_calls: int = 256
    max_connection_seconds: float = 900.0

    @property
    def retry_seconds(self) -> tuple[float, float]:
        """Between which a device is to come back; spread so that devices do not come together."""
        every = max(self.expected_devices / self.check_ins_per_second, self.min_retry_seconds)
        return every, 2 * every


class Buckets:
    """One bucket of calls per address.

    Args:
        limits: rate, burst and how many addresses.
        clock: seconds that never jump.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> bool:
        """Whether one more call is within the limits."""
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(address, (float(self._limits.burst), now))
            left = min(self._limits.burst, left + (now - then) * self._limits.calls_per_second)
            allowed = left >= 1
            self._left[address] = (left - allowed, now)
            while len(self._left) > self._limits.addresses:
                self._left.popitem(last=False)
            return allowed


class Slots:
    """So many at once, and no waiting."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Whether there was a free one; it is held until the end."""
        got = self._free.acquire(blocking=False)
        try:
            yield got
        finally:
            if got:
                self._free.release()
