"""Which device of which cohort a session is; the last ones are remembered."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from fedrec_server.devices._store import Store
from fedrec_server.devices.state import cohorts
from fedrec_server.devices.state.cohorts import SESSION_BYTES, Member


class Sessions:
    """Safe for several threads.

    Args:
        store: where others are looked up.
        most: remembered at once.
    """

    def __init__(self, store: Store, most: int) -> None:
        self._store, self._most = store, most
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Member] = OrderedDict()
        self._seen: dict[bytes, float] = {}

    def is_known(self, session: bytes) -> bool:
        """Whether it was looked up before."""
        return session in self._known

    def find(self, session: bytes) -> Member | None:
        """The device of a session; None: there is none, it has left, or its cohort is over."""
        if len(session) != SESSION_BYTES:
            return None
        found = self._known.get(session)
        if found is None:
            found = self._store.member(cohorts.digest(session))
            if found is None or found.gone or found.cohort != cohorts.cohort_of(session):
                return None
            self._remember(session, found)
        return found

    def forget(self, session: bytes) -> None:
        """It is looked up the next time."""
        with self._lock:
            self._known.pop(session, None)

    def seen(self, session: bytes, every_seconds: float) -> bool:
        """Whether it is time to note that a device is here."""
        now = time.monotonic()
        with self._lock:
            if now - self._seen.get(session, -every_seconds) < every_seconds:
                return False
            self._seen[session] = now
            if len(self._seen) > self._most:
                self._seen = {each: at for each, at in self._seen.items() if now - at < every_seconds}
            return True

    def _remember(self, session: bytes, member: Member) -> None:
        with self._lock:
            self._known[session] = member
            while len(self._known) > self._most:
                self._known.popitem(last=False)
