"""A relay near many devices, in a shop or a home: passes their connections on to a device service elsewhere.

TLS ends at the device and at the service: the relay sees addresses, times and sizes, holds no key, and can change
nothing without ending the connection. A device gives the relay's address, and the service's name as `server_name`.
Out of scope: what is said (`server`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fedrec.core.errors import ConfigError
from fedrec_server.network.admission import Admission, ConnectionLimits, Entry
from fedrec_server.network.front import Front, allow_files, listen
from fedrec_server.network.relay import both_ways

log = logging.getLogger(__name__)

#: Of one passed connection.
FILES = 2


@dataclass(frozen=True)
class EdgeLimits:
    """Of a relay.

    Attributes:
        connections, connections_per_address: at once.
        opened_per_second, opened_burst: new ones of one address.
        first_seconds: until a connection has said something; it takes no connection to the service before.
        connect_seconds: until the service has answered a new connection.
        longest_seconds: a connection is closed after so long.
    """

    connections: int = 1_024
    connections_per_address: int = 64
    opened_per_second: float = 10.0
    opened_burst: int = 100
    first_seconds: float = 10.0
    connect_seconds: float = 10.0
    longest_seconds: float = 3_600.0


class Edge:
    """A running relay.

    Args:
        upstream: host and port of the device service.
        host, port: to listen on; port 0: a free one.
        limits: None: the usual ones.

    Attributes:
        port: on which it listens.

    Raises:
        ServiceError: it cannot listen there.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        host: str = "127.0.0.1",
        port: int = 0,
        limits: EdgeLimits | None = None,
    ) -> None:
        self._upstream, self._limits = upstream, limits or EdgeLimits()
        allow_files(FILES * self._limits.connections)
        listener = listen(host, port)
        self.port = int(listener.getsockname()[1])
        self._front = Front(listener, Admission(_connection_limits(self._limits)), self._serve)
        self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="edge", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    async def _serve(self, connection: socket.socket, _: Entry) -> None:
        limits = self._limits
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(limits.first_seconds):
            await _has_spoken(connection)
        upstream = await self._connected()
        if upstream is None:
            return
        with upstream:
            async with asyncio.timeout(limits.longest_seconds):
                await both_ways(connection, upstream)

    async def _connected(self) -> socket.socket | None:
        """A connection to the service; None: it is away, and the device is to try again."""
        host, port = self._upstream
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                made = await _connect(host, port)
        except (OSError, TimeoutError) as error:
            if not self._away:
                reason = str(error) or "no answer"
                log.warning(
                    "%s:%d cannot be reached (%s): devices find their connection closed", host, port, reason
                )
            self._away = True
            return None
        self._away = False
        return made


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[address]:port".

    Raises:
        ConfigError: it is not of this form.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--upstream is {text!r:.100}: expected HOST:PORT, with a port from 1 to 65535")
    return host.strip("[]"), int(port)


async def _connect(host: str, port: int) -> socket.socket:
    """To the first address of a name that answers."""
    loop = asyncio.get_running_loop()
    failed: OSError = ConnectionError("the name has no address")
    for family, kind, number, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        made = socket.socket(family, kind, number)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(made, address)
            return made
        except OSError as error:
            made.close()
            failed = error
        except BaseException:
            made.close()
            raise
    raise failed


async def _has_spoken(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    spoken = asyncio.Event()
    loop.add_reader(connection, spoken.set)
    try:
        await spoken.wait()
    finally:
        loop.remove_reader(connection)


def _connection_limits(limits: EdgeLimits) -> ConnectionLimits:
    return ConnectionLimits(
        connections=limits.connections,
        per_address=limits.connections_per_address,
        unauthenticated_per_address=limits.connections_per_address,
        opened_per_second=limits.opened_per_second,
        burst=limits.opened_burst,
    )
