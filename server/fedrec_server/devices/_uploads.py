"""Long answers that come in pieces: unfinished ones, in bounded memory.

Another front end, or this one after a restart, knows nothing of an unfinished upload, and the device sends it again.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[bytes, int]


@dataclass
class Upload:
    """An unfinished one.

    Attributes:
        total, sha256: of the whole.
        content: what has come.
        used: when the last piece came.
    """

    total: int
    sha256: bytes
    used: float
    content: bytearray = field(default_factory=bytearray)


class Uploads:
    """Safe for several threads.

    Args:
        most_bytes: of all together, each counted in full from its first piece on.
        idle_seconds: after which one gives way to others.
        clock: seconds that never jump.
    """

    def __init__(
        self, most_bytes: int, idle_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_bytes, self._idle_seconds, self._clock = most_bytes, idle_seconds, clock
        self._lock = threading.Lock()
        self._by_key: OrderedDict[Key, Upload] = OrderedDict()
        self._reserved = 0

    def received(self, key: Key, total: int, sha256: bytes) -> int:
        """How much of this answer has come."""
        with self._lock:
            found = self._by_key.get(key)
            return len(found.content) if found and (found.total, found.sha256) == (total, sha256) else 0

    def add(self, key: Key, total: int, sha256: bytes, offset: int, piece: bytes) -> int | None:
        """Add a piece where it follows what has come; how much has come then. None: there is no room now."""
        with self._lock:
            upload = self._by_key.get(key)
            if upload is not None and (upload.total, upload.sha256) != (total, sha256):
                self._forget(key)
                upload = None
            if upload is None:
                if offset:
                    return 0
                if not self._make_room(total):
                    return None
                upload = self._by_key[key] = Upload(total, sha256, self._clock())
                self._reserved += total
            if offset == len(upload.content):
                upload.content += piece[: total - offset]
            upload.used = self._clock()
            self._by_key.move_to_end(key)
            return len(upload.content)

    def take(self, key: Key) -> bytes | None:
        """A whole answer, which is forgotten here; None: it is not whole, or not what its hash says."""
        with self._lock:
            upload = self._by_key.get(key)
            if upload is None or len(upload.content) < upload.total:
                return None
            self._forget(key)
        content = bytes(upload.content)
        return content if hashlib.sha256(content).digest() == upload.sha256 else None

    def forget(self, key: Key) -> None:
        """Drop what has come of an answer."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        upload = self._by_key.pop(key, None)
        if upload is not None:
            self._reserved -= upload.total

    def _make_room(self, size: int) -> bool:
        oldest = self._clock() - self._idle_seconds
        while self._reserved + size > self._most_bytes and self._by_key:
            key, upload = next(iter(self._by_key.items()))
            if upload.used > oldest:
                return False
            self._forget(key)
        return self._reserved + size <= self._most_bytes
