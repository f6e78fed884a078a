"""Starts and stops the service: TLS with certificates of both sides, health, no reflection, bounded everything.

Devices show the certificate of their app, which tells apps apart and not users. Without TLS it serves on loopback
only, and says so. Out of scope: calls (`calls`), what is answered (`handlers`).
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any, Self

from fedrec_server.network.front import listen
from fedrec_server.network.grpc_server import Certificates, GrpcServer, Sizes, credentials
from fedrec_server.network.limits import Limits
from fedrec_server.network.watchdog import Watchdog
from fedrec_server.registry import Registry
from fedrec_server.service._calls import Calls
from fedrec_server.service._handlers import ModelService
from fedrec_server.service._quotas import Quotas

MAX_REQUEST_BYTES = 64 << 10
#: A crash loses the sums of so long and no more.
WRITE_SECONDS = 5.0


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
        self._stopping = threading.Event()
        self._writing = threading.Thread(target=self._keep_writing, name="sums", daemon=True)
        sizes = Sizes(limits.threads, 2 * limits.calls_per_address, MAX_REQUEST_BYTES)
        try:
            self._server = GrpcServer(
                self.calls.handlers(), self.calls.guard, listener, credentials, limits, sizes
            )
        except BaseException:
            self._watchdog.close()
            raise
        self.port = self._server.port
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
    ) -> Self:
        """Serve some populations.

        Args:
            registries: one per population.
            certificates: None: no TLS, for trying it out on loopback.
            host, port: to listen on; port 0: a free one.
            limits: None: the usual ones.

        Raises:
            ServiceError: it cannot listen there, a certificate cannot be read, or no TLS elsewhere than on loopback.
            RegistryError: the sums of a population cannot be read.
        """
        limits = limits or Limits()
        given = credentials(certificates, host)
        answers = ModelService(registries, limits.retry_seconds, Quotas.of(limits))
        return cls(answers, limits, listen(host, port), given)

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
        self._server.stop()
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
