"""In front of gRPC's own port: admits connections by address before gRPC sees them, and passes their bytes on.

gRPC for Python bounds connections in all and not by address, so that one stranger without a certificate could hold
all of them. Here each connection is admitted or closed first (`network.admission`); TLS stays end to end
between caller and gRPC, which listens on a free port of 127.0.0.1. Of which caller a connection is, gRPC does not
see: it is looked up here by the port from which the connection was passed on, and a call that came another way has
no address and is refused. A connection counts as authenticated from its first call on, which it could make only with
a certificate of an app, where one is asked for. Out of scope: limits on calls (`calls`).
"""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from contextlib import suppress

from fedrec_server.network.admission import Admission, ConnectionLimits, Entry
from fedrec_server.network.front import Front, allow_files
from fedrec_server.network.limits import Limits

PIECE_BYTES = 64 << 10
CONNECT_SECONDS = 5.0
#: Of one passed connection: to the caller, to gRPC, and gRPC's own.
FILES = 3


class Relay:
    """Runs in a thread of its own until it is closed.

    Args:
        listener: for callers, listening and not blocking.
        port: gRPC's, on 127.0.0.1.
        limits: of the service.
    """

    def __init__(self, listener: socket.socket, port: int, limits: Limits) -> None:
        allow_files(FILES * limits.connections)
        self._inner = ("127.0.0.1", port)
        self._admission = Admission(connection_limits(limits))
        self._front = Front(listener, self._admission, self._serve)
        self._entries: dict[int, Entry] = {}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
        self._thread.start()

    def entry(self, peer: str) -> Entry | None:
        """The connection behind a peer of gRPC ("ipv4:127.0.0.1:4711"); None: it did not come through here."""
        return self._entries.get(_port(peer))

    def authenticated(self, entry: Entry) -> None:
        """A call of this connection is served; any thread may say so: two values change, each at once."""
        self._admission.accept(entry)

    def close(self) -> None:
        """End all connections; again is free."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._front.run(self._stop, grace_seconds=0.0))
        finally:
            self._loop.close()

    async def _serve(self, connection: socket.socket, entry: Entry) -> None:
        """Pass bytes both ways until either side ends."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as inner:
            inner.setblocking(False)
            inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            inner.bind((self._inner[0], 0))
            port = int(inner.getsockname()[1])
            self._entries[port] = entry
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(inner, self._inner)
                await both_ways(connection, inner)
            finally:
                del self._entries[port]


def connection_limits(limits: Limits) -> ConnectionLimits:
    """Those of the service that are about connections."""
    return ConnectionLimits(
        connections=limits.connections,
        per_address=limits.connections_per_address,
        unauthenticated_per_address=limits.unauthenticated_per_address,
        opened_per_second=limits.opened_per_second,
        burst=limits.opened_burst,
        addresses=limits.addresses,
    )


async def both_ways(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until either side ends; a piece at a time, so that other connections have their turn.

    The loop calls back for each piece: a task that waits for each of them would cost several times as much.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    piece = _piece(loop)
    ways = [_Way(loop, one, other, over, piece), _Way(loop, other, one, over, piece)]
    try:
        for way in ways:
            loop.add_reader(way.source, way.read)
        await over
    finally:
        for each in (one, other):
            loop.remove_reader(each)
            loop.remove_writer(each)


@functools.lru_cache(maxsize=16)
def _piece(loop: asyncio.AbstractEventLoop) -> memoryview:
    """Memory for the piece that a loop passes on, one for all its connections: fresh memory costs time."""
    return memoryview(bytearray(PIECE_BYTES))


class _Way:
    """From one socket to another, no faster than the other takes it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        target: socket.socket,
        over: asyncio.Future[None],
        piece: memoryview,
    ) -> None:
        self.source, self._target = source, target
        self._loop, self._over = loop, over
        self._left = b""
        self._piece = piece

    def read(self) -> None:
        """There is something to take, or the end."""
        try:
            size = self.source.recv_into(self._piece)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if size:
            self._send(self._piece[:size])
        else:
            self._end()

    def write(self) -> None:
        """The target takes more."""
        self._send(memoryview(self._left))

    def _send(self, content: memoryview) -> None:
        try:
            sent = self._target.send(content)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._end()
            return
        waited = bool(self._left)
        self._left = bytes(content[sent:])
        if self._left and not waited:
            self._loop.remove_reader(self.source)
            self._loop.add_writer(self._target, self.write)
        elif waited and not self._left:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self.source, self.read)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


def _port(peer: str) -> int:
    port = peer.rpartition(":")[2]
    return int(port) if port.isdecimal() else -1
