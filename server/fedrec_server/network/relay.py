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

    def address(self, peer: str) -> str | None:
        """Of the caller behind a peer of gRPC ("ipv4:127.0.0.1:4711"); None: it did not come through here."""
        entry = self._entries.get(_port(peer))
        return entry.address if entry else None

    def authenticated(self, peer: str) -> None:
        """A call of this connection is served; any thread may say so."""
        entry = self._entries.get(_port(peer))
        if entry is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._admission.accept, entry)

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
                await _both_ways(connection, inner)
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


async def _both_ways(one: socket.socket, other: socket.socket) -> None:
    ways = [asyncio.create_task(_pass(one, other)), asyncio.create_task(_pass(other, one))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass(source: socket.socket, target: socket.socket) -> None:
    """No faster than the target takes it."""
    loop = asyncio.get_running_loop()
    while content := await loop.sock_recv(source, PIECE_BYTES):
        await loop.sock_sendall(target, content)
        await asyncio.sleep(0)  # neither call pauses while there is something to pass


def _port(peer: str) -> int:
    port = peer.rpartition(":")[2]
    return int(port) if port.isdecimal() else -1
