"""Starts and stops the service: TLS with certificates of both sides, health, no reflection, bounded everything.

Devices show the certificate of their app, which tells apps apart and not users. Without TLS it serves on loopback
only, and says so. Out of scope: calls (`calls`), what is answered (`handlers`).
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from fedrec.core.errors import ServiceError
from fedrec_server.network.certificates import days_left
from fedrec_server.network.front import listen
from fedrec_server.network.limits import Limits
from fedrec_server.network.relay import Relay
from fedrec_server.network.watchdog import Watchdog
from fedrec_server.registry import Registry
from fedrec_server.service._calls import Calls
from fedrec_server.service._campaigns import Campaigns, NoCampaigns
from fedrec_server.service._handlers import ModelService
from fedrec_server.service._quotas import Quotas
from fedrec_server.service.enrolments import EnrolmentTokens

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 << 10
MAX_METADATA_BYTES = 8 << 10
STOP_SECONDS = 2.0
#: A crash loses the sums of so long and no more.
WRITE_SECONDS = 5.0
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


class Service:
    """A running service; build it with `start`.

    Attributes:
        port: on which it listens.
    """

    def __init__(
        self, answers: ModelService, limits: Limits, listener: socket.socket, credentials: Any
    ) -> None:
        self._answers = answers
        self._watchdog = Watchdog()
        self.calls = Calls(answers, limits, self._watchdog)
        self._server = grpc.server(
            ThreadPoolExecutor(limits.threads, thread_name_prefix="model-service"),
            handlers=self.calls.handlers(),
            maximum_concurrent_rpcs=limits.threads + limits.max_waiting,
            options=_options(limits),
        )
        self._stopping = threading.Event()
        self._writing = threading.Thread(target=self._keep_writing, name="sums", daemon=True)
        self.port = int(listener.getsockname()[1])
        try:
            inner = _bind(self._server, credentials)
        except BaseException:
            self._watchdog.close()
            listener.close()
            raise
        self._relay = self.calls.guard.relay = Relay(listener, inner, limits)
        self._server.start()
        self._writing.start()

    @classmethod
    def start(
        cls,
        registries: list[Registry],
        certificates: Certificates | None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        campaigns: Campaigns | None = None,
        tokens: EnrolmentTokens | None = None,
    ) -> Self:
        """Serve some populations.

        Args:
            registries: one per population.
            certificates: None: no TLS, for trying it out on loopback.
            host, port: to listen on; port 0: a free one.
            limits: None: the usual ones.
            campaigns: of training; None: none.
            tokens: without which no device enrols in them; None: none are asked for.

        Raises:
            ServiceError: it cannot listen there, a certificate cannot be read, or no TLS elsewhere than on loopback.
            RegistryError: the sums of a population cannot be read.
        """
        limits = limits or Limits()
        credentials = _credentials(certificates, host)
        answers = ModelService(
            registries, limits.retry_seconds, campaigns or NoCampaigns(), Quotas.of(limits), tokens
        )
        return cls(answers, limits, listen(host, port), credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let calls end for a moment, then close, with all sums written; again is free."""
        if self._stopping.is_set():
            return
        self.calls.guard.serving = False
        self._server.stop(STOP_SECONDS).wait()
        self._relay.close()
        self._stopping.set()
        self._writing.join()
        self._watchdog.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it is stopped, or the seconds are over; whether it is stopped."""
        return self._stopping.wait(seconds)

    def _keep_writing(self) -> None:
        while not self._stopping.wait(WRITE_SECONDS):
            self._answers.write()
        self._answers.write()


def _bind(server: grpc.Server, credentials: Any) -> int:
    """A free port on loopback, to which the relay passes what it has admitted."""
    address = "127.0.0.1:0"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except (RuntimeError, ValueError) as error:
        raise ServiceError(f"the service cannot listen on {address} ({error}): free a port") from error


def _credentials(certificates: Certificates | None, host: str) -> Any:
    if certificates is None:
        if not _is_loopback(host):
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


def _is_loopback(host: str) -> bool:
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


def _options(limits: Limits) -> list[tuple[str, int]]:
    age = int(limits.max_connection_seconds * 1000)
    return [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", 2 * limits.calls_per_address),
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
        # What is received and not yet read stays small: windows do not grow.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.so_reuseport", 0),
    ]
