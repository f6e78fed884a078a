"""A front end of the device service: starts and stops; keeps nothing that another one could not take over.

Any number of them may serve one database. Out of scope: calls (`calls`), jobs (`fedrec_server.jobs`).
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from fedrec_server.devices._board import Board
from fedrec_server.devices._cohort_calls import CohortCalls
from fedrec_server.devices._connect_handler import ConnectHandler
from fedrec_server.devices._connect_server import ConnectServer
from fedrec_server.devices._entry_calls import EntryCalls
from fedrec_server.devices._sessions import Sessions
from fedrec_server.devices._store import Store
from fedrec_server.devices.admission.verifier import Admission
from fedrec_server.devices.calls import SERVICE, DeviceCalls
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.state.database import State
from fedrec_server.network.call_guard import Caller, CallGuard
from fedrec_server.network.front import listen
from fedrec_server.network.grpc_server import Certificates, GrpcServer, Sizes, credentials
from fedrec_server.network.http_connection import tls
from fedrec_server.network.limits import Places
from fedrec_server.network.watchdog import Watchdog

#: Of a message beyond the piece in it.
MESSAGE_BYTES = 64 << 10
#: Calls at once on one connection.
STREAMS = 8


@dataclass(frozen=True)
class Listening:
    """Where a front end listens.

    Attributes:
        certificates: None: no TLS, on loopback only.
        host, port: for gRPC; port 0: a free one.
        connect_port: for Connect, on the same host; None: it is not served.
        origins: of pages whose scripts may call over Connect.
    """

    certificates: Certificates | None
    host: str = "127.0.0.1"
    port: int = 0
    connect_port: int | None = None
    origins: tuple[str, ...] = ()


class FrontEnd:
    """A running front end.

    Args:
        state: the database; the caller closes it.
        listening: where.
        admissions: verifiers by name, one of which a device must pass; empty: every device may join.
        limits: None: the usual ones.

    Attributes:
        port: of gRPC.
        connect_port: of Connect; 0: it is not served.

    Raises:
        ServiceError: it cannot listen there, a certificate cannot be read, or no TLS elsewhere than on loopback.
    """

    def __init__(
        self,
        state: State,
        listening: Listening,
        admissions: Mapping[str, Admission] | None = None,
        limits: DeviceLimits | None = None,
    ) -> None:
        limits = limits or DeviceLimits()
        given = credentials(listening.certificates, listening.host)
        self._stopping = threading.Event()
        self._store = Store(state, secrets.token_hex(16), limits)
        self._board = Board(state, limits.poll_seconds)
        self._watchdog = Watchdog()
        self._pool = ThreadPoolExecutor(limits.held_calls + limits.network.threads, "connect-calls")
        sessions = Sessions(self._store, limits.sessions)
        self.calls = DeviceCalls(
            EntryCalls(self._board, self._store, admissions, limits),
            CohortCalls(self._board, self._store, sessions, limits),
            sessions,
            limits,
        )
        with ExitStack() as started:
            started.callback(self._close)
            self._grpc = self._serve(listen(listening.host, listening.port), given, limits)
            started.callback(self._grpc.stop)
            self._connect = self._serve_connect(listening, limits)
            started.pop_all()
        self.port = self._grpc.port
        self.connect_port = self._connect.port if self._connect else 0

    def _serve(self, listener: socket.socket, given: Any, limits: DeviceLimits) -> GrpcServer:
        network = limits.network
        threads = network.threads + limits.held_calls
        guard = CallGuard(
            self._watchdog,
            Places(network.calls_per_address, threads),
            network.message_seconds,
            network.retry_seconds,
            lambda caller: None,
        )

        def method(name: str) -> grpc.RpcMethodHandler:
            def answer(content: bytes, caller: Caller) -> bytes:
                return self.calls.answer(name, content, caller)

            return guard.unary(answer)

        methods = {name: method(name) for name in self.calls.methods}
        handlers = (grpc.method_handlers_generic_handler(SERVICE, methods), guard.health(SERVICE))
        sizes = Sizes(threads, STREAMS, limits.piece_bytes + MESSAGE_BYTES)
        return GrpcServer(handlers, guard, listener, given, network, sizes)

    def _serve_connect(self, listening: Listening, limits: DeviceLimits) -> ConnectServer | None:
        if listening.connect_port is None:
            return None
        files = listening.certificates
        context = tls(files.certificate, files.key) if files else None
        handler = ConnectHandler(
            self.calls,
            listening.origins,
            self._pool,
            limits.piece_bytes,
            limits.network.retry_seconds[0],
        )
        return ConnectServer(listen(listening.host, listening.connect_port), handler, context, limits.network)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer held calls, let others end for a moment, then close; again is free."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._board.close()
        if self._connect is not None:
            self._connect.close()
        self._grpc.stop()
        self._close()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it is stopped, or the seconds are over; whether it is stopped."""
        return self._stopping.wait(seconds)

    def _close(self) -> None:
        self._board.close()
        self._watchdog.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._store.close()
