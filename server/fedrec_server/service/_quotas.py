"""How much one address and all of them may add in a day, and which reports came already; in memory alone.

Addresses are kept as keyed hashes whose key is forgotten with the day, so that no list of who called can be made of
them. When the memory for a day is full, nothing more is taken on that day. A clock that is put back begins no new
day. Out of scope: what is added.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fedrec.wire.counters import DAYS_TRIED
from fedrec_server.network.limits import Limits

DAY = 86_400
_DIGEST_BYTES = 12


class DailyQuota:
    """So many a day of one key, and of all; safe for several threads.

    Args:
        per_key, total: a day.
        keys: remembered in a day; others are refused.
        clock: seconds since 1970.
    """

    def __init__(self, per_key: int, total: int, keys: int, clock: Callable[[], float] = time.time) -> None:
        self._per_key, self._total, self._keys, self._clock = per_key, total, keys, clock
        self._lock = threading.Lock()
        self._day = -1
        self._begin(0)

    def take(self, key: str) -> bool:
        """Whether one more is within the quota; it counts when it is."""
        with self._lock:
            day = int(self._clock() // DAY)
            if day > self._day:
                self._begin(day)
            hashed = hashlib.blake2b(key.encode(), key=self._key, digest_size=_DIGEST_BYTES).digest()
            full = hashed not in self._taken and len(self._taken) >= self._keys
            if full or self._taken[hashed] >= self._per_key or self._sum >= self._total:
                return False
            self._taken[hashed] += 1
            self._sum += 1
            return True

    def _begin(self, day: int) -> None:
        self._day, self._key, self._sum = day, secrets.token_bytes(32), 0
        self._taken: Counter[bytes] = Counter()


class SeenTokens:
    """Tokens of reports that were counted, for as long as a device tries; safe for several threads.

    Args:
        most: remembered at once; when it is full, nothing is counted.
        clock: seconds since 1970.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.time) -> None:
        self._most, self._clock = most, clock
        self._lock = threading.Lock()
        self._days: dict[int, set[str]] = {}

    def __contains__(self, token: str) -> bool:
        with self._lock:
            return any(token in seen for seen in self._days.values())

    def add(self, token: str) -> bool:
        """Remember a token; False: it was known, or there is no room."""
        with self._lock:
            day = max([int(self._clock() // DAY), *self._days])
            for old in [each for each in self._days if each < day - DAYS_TRIED - 1]:
                del self._days[old]
            if any(token in seen for seen in self._days.values()):
                return False
            if sum(map(len, self._days.values())) >= self._most:
                return False
            self._days.setdefault(day, set()).add(token)
            return True


@dataclass(frozen=True)
class Quotas:
    """Of a service.

    Attributes:
        reports: of counters, by population and address.
        tokens: of reports that were counted.
    """

    reports: DailyQuota
    tokens: SeenTokens

    @classmethod
    def of(cls, limits: Limits) -> Quotas:
        """As the limits say."""
        return cls(
            DailyQuota(limits.reports_per_address, limits.reports_per_day, limits.reports_per_day),
            SeenTokens(limits.reports_per_day * (DAYS_TRIED + 2)),
        )
