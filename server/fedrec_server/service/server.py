"""Starts and stops the service: TLS with certificates of both sides, health, no reflection, bounded everything.

Devices show the certificate of their app, which tells apps apart and not people. Without TLS it serves on loopback
only, and says so. Out of scope: what is answered (`handlers`).
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedrec.errors import ServiceError
from fedrec_server.registry import Registry
from fedrec_server.service.campaigns import Campaigns, NoCampaigns
from fedrec_server.service.handlers import SERVICE, ModelService
from fedrec_server.service.limits import Limits

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 << 10
MAX_METADATA_BYTES = 8 << 10
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class Certificates:
    """Of the server, as files.

    Attributes:
        certificate, key: of this server.
        apps: certificate authority of the apps that may ask; None: anybody may (the app must say so explicitly).
    """

    certificate: Path
    key: Path
    apps: Path | None


class Service:
    """A running service; build it with `start`."""

    def __init__(
        self, server: grpc.Server, port: int, service: ModelService, state: health.HealthServicer
    ) -> None:
        self._server, self.port, self._service, self._state = server, port, service, state

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
    ) -> Self:
        """Serve some populations.

        Args:
            registries: one per population.
            certificates: None: no TLS, for trying it out on loopback.
            host, port: to listen on; port 0: a free one.
            limits: None: the usual ones.
            campaigns: of training; None: none.

        Raises:
            ServiceError: it cannot listen there, a certificate cannot be read, or no TLS elsewhere than on loopback.
        """
        limits = limits or Limits()
        service = ModelService(registries, limits, campaigns or NoCampaigns())
        # Calls that are served and calls that wait: no thread of its own for each connection.
        server = grpc.server(
            ThreadPoolExecutor(limits.threads, thread_name_prefix="model-service"),
            handlers=(service.handlers(),),
            maximum_concurrent_rpcs=limits.threads + limits.max_calls,
            options=_options(limits),
        )
        state = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(state, server)
        for name in ("", SERVICE):
            state.set(name, health_pb2.HealthCheckResponse.SERVING)
        address = f"{host}:{port}"
        try:
            bound = _bind(server, address, host, certificates)
        except (OSError, RuntimeError, ValueError) as error:
            raise ServiceError(
                f"the service cannot listen on {address} ({error}): give a free port"
            ) from error
        server.start()
        return cls(server, bound, service, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let calls end for a moment, then close; again is free."""
        self._state.enter_graceful_shutdown()
        self._server.stop(STOP_SECONDS).wait()
        self._service.close()

    def wait(self) -> None:
        """Until it is stopped."""
        self._server.wait_for_termination()


def _bind(server: grpc.Server, address: str, host: str, certificates: Certificates | None) -> int:
    if certificates is None:
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise ServiceError(
                f"no TLS on {host}: give certificates (`fedrec certs init`), or serve on 127.0.0.1"
            )
        log.warning("NO TLS: anybody on this machine can read and change what is sent")
        return int(server.add_insecure_port(address))
    pair = (certificates.key.read_bytes(), certificates.certificate.read_bytes())
    apps = certificates.apps.read_bytes() if certificates.apps else None
    if apps is None:
        log.warning("NO CLIENT CERTIFICATES: anybody who can reach this port may ask")
    credentials = grpc.ssl_server_credentials([pair], apps, require_client_auth=apps is not None)
    return int(server.add_secure_port(address, credentials))


def _options(limits: Limits) -> list[tuple[str, int]]:
    age = int(limits.max_connection_seconds * 1000)
    return [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", 32),
        ("grpc.max_connection_age_ms", age),
        ("grpc.max_connection_age_grace_ms", age),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
