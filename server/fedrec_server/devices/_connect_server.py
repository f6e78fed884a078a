"""Serves Connect in a thread of its own: connections within limits, over TLS, each step of them within its time."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress

from fedrec_server.network.admission import Admission
from fedrec_server.network.front import Front, allow_files
from fedrec_server.network.http_connection import Handler, HttpServer, TimeLimits
from fedrec_server.network.limits import Limits
from fedrec_server.network.relay import connection_limits

GRACE_SECONDS = 2.0


class ConnectServer:
    """Runs until it is closed.

    Args:
        listener: for callers.
        handler: answers.
        context: of TLS; None: none.
        limits: on connections.
    """

    def __init__(
        self, listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, limits: Limits
    ) -> None:
        allow_files(limits.connections)
        self.port = int(listener.getsockname()[1])
        admission = Admission(connection_limits(limits))
        times = TimeLimits(handshake_seconds=limits.handshake_seconds, header_seconds=limits.message_seconds)
        server = HttpServer(handler, context, admission, times)
        self._front = Front(listener, admission, server.serve)
        self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="connect", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let calls end for a moment, then end all connections; again is free."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._front.run(self._stop, GRACE_SECONDS))
        finally:
            self._loop.close()
