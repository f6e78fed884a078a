"""Which connections are kept when there are too many: decided before any caller has shown credentials.

A connection counts as authenticated from the first call on that the service behind accepted. All others are bounded
per address, far below the total, and give way: a new connection takes the slot of the oldest unauthenticated one of
its own address that is not being answered, or, when all slots are taken, of the address that holds the most of them.
So connections that only wait keep no one out, whether they come from one address or from many, and a call that is
being answered is never cut. Out of scope: how long each step of a connection may take (`http_connection`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedrec_server.network.limits import Buckets


@dataclass(frozen=True)
class ConnectionLimits:
    """Of one listening address.

    Attributes:
        connections: at once.
        per_address: of these, from one address.
        unauthenticated_per_address: of these, without an accepted call.
        opened_per_second, burst: new connections from one address; more are closed at once.
        addresses: whose rate is remembered.
        held_bytes_per_address, held_bytes: of unfinished requests on unauthenticated connections.
        per_node: connections authenticated by one node's key; the oldest that is idle gives way to a new one.
    """

    connections: int = 4096
    per_address: int = 1024
    unauthenticated_per_address: int = 64
    opened_per_second: float = 50.0
    burst: int = 600
    addresses: int = 10_000
    held_bytes_per_address: int = 96 << 20
    held_bytes: int = 256 << 20
    per_node: int = 16


@dataclass(eq=False)
class Entry:
    """An admitted connection.

    Attributes:
        address: as a limit knows it.
        end: closes it; must not block.
        used: order of its admission; of authenticated ones, of its last call.
        authenticated: one of its calls was accepted.
        node: whose key authenticated it, where it is known.
        in_call: a whole request has come and is not answered.
        forwarded: the service behind is working on it.
        held: bytes of the request that has not come whole.
        app: which app's certificate it has shown; empty: not known yet.
    """

    address: str
    end: Callable[[], object]
    used: int
    authenticated: bool = False
    node: bytes = b""
    in_call: bool = False
    forwarded: bool = False
    held: int = 0
    app: str = ""

    @property
    def busy(self) -> bool:
        """It must not be cut now; a call of a stranger that still waits for its turn may be."""
        return self.forwarded or (self.in_call and self.authenticated)


class Admission:
    """Of one listening address; for one thread.

    Args:
        limits: see there.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._entries: dict[Entry, None] = {}
        self._order = itertools.count()
        self._opened = Buckets(limits.opened_per_second, limits.burst, limits.addresses)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def busy(self) -> int:
        """How many are being answered."""
        return sum(entry.busy for entry in self._entries)

    def admit(self, address: str, end: Callable[[], object]) -> Entry | None:
        """A slot for a new connection, taken from another where needed; None: it is to be closed."""
        if not self._opened.take(address) or not self._make_room(address):
            return None
        entry = Entry(address, end, next(self._order))
        self._entries[entry] = None
        return entry

    def leave(self, entry: Entry) -> None:
        """The connection is over; again is free."""
        self._entries.pop(entry, None)

    def accept(self, entry: Entry, node: bytes = b"") -> None:
        """A call of this connection was accepted by the service behind, for a node where that is known."""
        entry.authenticated, entry.used, known = True, next(self._order), entry.node
        if not node or node == known:
            return
        entry.node = node
        own = [each for each in self._entries if each.node == node]
        if len(own) > self.limits.per_node:
            self._end(each for each in own if each is not entry)

    @contextmanager
    def calling(self, entry: Entry) -> Iterator[None]:
        """A whole request is answered meanwhile; an authenticated connection keeps its slot."""
        entry.in_call = True
        try:
            yield
        finally:
            entry.in_call = False
            if entry.authenticated:
                entry.used = next(self._order)

    @contextmanager
    def forwarding(self, entry: Entry) -> Iterator[None]:
        """The service behind works for it meanwhile; any connection keeps its slot."""
        entry.forwarded = True
        try:
            yield
        finally:
            entry.forwarded = False

    def hold(self, entry: Entry, size: int) -> None:
        """So many bytes of a request have come; other unfinished ones give way when they are too many together."""
        entry.held, limits = size, self.limits
        if entry.authenticated or not size:
            return
        while sum(e.held for e in self._waiting(entry.address)) > limits.held_bytes_per_address:
            if not self._end(_holding(self._waiting(entry.address), entry)):
                break
        while sum(e.held for e in self._waiting()) > limits.held_bytes:
            others = _holding(self._waiting(), entry)
            held = Counter[str]()
            for each in others:
                held[each.address] += each.held
            if not self._end(e for e in others if e.address == held.most_common(1)[0][0]):
                break

    def _make_room(self, address: str) -> bool:
        limits = self.limits
        own = [entry for entry in self._entries if entry.address == address]
        strangers = [entry for entry in own if not entry.authenticated]
        if len(strangers) >= limits.unauthenticated_per_address:
            return self._end(strangers)
        if len(own) >= limits.per_address:
            return self._end(own)
        if len(self._entries) >= limits.connections:
            return self._end(self._largest_waiting()) or self._end(self._entries)
        return True

    def _largest_waiting(self) -> list[Entry]:
        """Unauthenticated connections of the address that has the most that wait."""
        waiting = self._waiting()
        counts = Counter(entry.address for entry in waiting)
        return [e for e in waiting if e.address == counts.most_common(1)[0][0]]

    def _waiting(self, address: str | None = None) -> list[Entry]:
        """Unauthenticated connections that are not being answered."""
        idle = (entry for entry in self._entries if not entry.busy and not entry.authenticated)
        return [entry for entry in idle if address in (None, entry.address)]

    def _end(self, candidates: Iterable[Entry]) -> bool:
        """End the oldest that is not being answered, unauthenticated ones first; whether there was one."""
        idle = [entry for entry in candidates if not entry.busy]
        if not idle:
            return False
        ended = min(idle, key=lambda entry: (entry.authenticated, entry.used))
        self.leave(ended)
        ended.end()
        return True


def _holding(entries: Iterable[Entry], but: Entry) -> list[Entry]:
    return [entry for entry in entries if entry.held and entry is not but]
