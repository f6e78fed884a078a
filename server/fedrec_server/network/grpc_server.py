"""A gRPC server behind a relay: TLS with certificates of both sides, no reflection, bounded everything.

Callers show the certificate of their app, which tells apps apart and not users. Without TLS a server listens on
loopback only, and says so. Out of scope: what is answered, and how a message is read (`call_guard`).
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fedrec.core.errors import ServiceError
from fedrec_server.network.call_guard import CallGuard
from fedrec_server.network.certificates import days_left
from fedrec_server.network.limits import Limits
from fedrec_server.network.relay import Relay

log = logging.getLogger(__name__)

MAX_METADATA_BYTES = 8 << 10
STOP_SECONDS = 2.0
WARN_DAYS = 14.0


@dataclass(frozen=True)
class Certificates:
    """Of the server, as files.

    Attributes:
        certificate, key: of this server.
        apps: certificate authority of the apps that may ask; None: anyone may (the operator must say so).
    """

    certificate: Path
    key: Path
    apps: Path | None


@dataclass(frozen=True)
class Sizes:
    """Of a server.

    Attributes:
        threads: that serve calls.
        streams: calls at once on one connection.
        request_bytes: of one message.
    """

    threads: int
    streams: int
    request_bytes: int


class GrpcServer:
    """Runs from its start until `stop`.

    Args:
        handlers: methods.
        guard: of the methods; learns the addresses of callers from here.
        listener: for callers.
        credentials: of `credentials`; None: no TLS.
        limits: on connections.
        sizes: of the server.

    Raises:
        ServiceError: there is no free port on loopback.
    """

    def __init__(
        self,
        handlers: tuple[grpc.GenericRpcHandler, ...],
        guard: CallGuard,
        listener: socket.socket,
        credentials: Any,
        limits: Limits,
        sizes: Sizes,
    ) -> None:
        self._guard = guard
        self._server = grpc.server(
            ThreadPoolExecutor(sizes.threads, thread_name_prefix="calls"),
            handlers=handlers,
            maximum_concurrent_rpcs=sizes.threads + limits.max_waiting,
            options=_options(limits, sizes),
        )
        self.port = int(listener.getsockname()[1])
        try:
            inner = _bind(self._server, credentials)
        except BaseException:
            listener.close()
            raise
        self._relay = guard.relay = Relay(listener, inner, limits)
        self._server.start()

    def stop(self) -> None:
        """Let calls end for a moment, then close."""
        self._guard.serving = False
        self._server.stop(STOP_SECONDS).wait()
        self._relay.close()


def _bind(server: grpc.Server, credentials: Any) -> int:
    """A free port on loopback, to which the relay passes what it has admitted."""
    address = "127.0.0.1:0"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except (RuntimeError, ValueError) as error:
        raise ServiceError(f"the service cannot listen on {address} ({error}): free a port") from error


def credentials(certificates: Certificates | None, host: str) -> Any:
    """Of gRPC; None: no TLS, on loopback only.

    Raises:
        ServiceError: a certificate cannot be read, or no TLS elsewhere than on loopback.
    """
    if certificates is None:
        if not is_loopback(host):
            raise ServiceError(
                f"no TLS on {host}: give certificates (`fedrec-server certs init`), or serve on 127.0.0.1"
            )
        log.warning("NO TLS: anyone on this machine can read and change what is sent")
        return None
    pair = (_read(certificates.key), _read(certificates.certificate))
    apps = _read(certificates.apps) if certificates.apps else None
    if apps is None:
        log.warning("NO CLIENT CERTIFICATES: anyone who can reach this port may ask")
    _warn_of_end(certificates)
    return grpc.ssl_server_credentials([pair], apps, require_client_auth=apps is not None)


def _warn_of_end(certificates: Certificates) -> None:
    for path in filter(None, (certificates.certificate, certificates.apps)):
        left = days_left(path)
        if left < WARN_DAYS:
            log.warning(
                "%s holds for %.0f more days, then no one is served: make new ones in time", path, left
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServiceError(
            f"certificate {path} cannot be read ({error.strerror}): make it with `fedrec-server certs init`"
        ) from error


def _options(limits: Limits, sizes: Sizes) -> list[tuple[str, int]]:
    age = int(limits.max_connection_seconds * 1000)
    return [
        ("grpc.max_receive_message_length", sizes.request_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", sizes.streams),
        # The relay bounds them, by address and in all; gRPC closes late what the relay has closed.
        ("grpc.max_allowed_incoming_connections", 2 * limits.connections),
        ("grpc.server_handshake_timeout_ms", int(limits.handshake_seconds * 1000)),
        ("grpc.max_connection_age_ms", age),
        ("grpc.max_connection_age_grace_ms", int(limits.download_seconds * 1000)),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # What is received and not yet read stays within a message: windows do not grow.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", sizes.request_bytes),
        ("grpc.so_reuseport", 0),
    ]
