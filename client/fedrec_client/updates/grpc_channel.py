"""One gRPC connection to a service: TLS with the app's certificate, timeouts, a few retries, one line of an error.

Without TLS on loopback only, and only when asked for. Nothing that comes is believed here. Out of scope: what is
asked (`grpc_transport`, `fedrec_client.training`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from fedrec.core.errors import NotPublished, ServerBusy, ServiceError

CALL_SECONDS = 10.0
TRIES = 3
#: Wait before another try, doubled each time, with jitter.
PAUSE_SECONDS = 0.3
MAX_ANSWER_BYTES = 5 << 20
BUSY_SECONDS = (60.0, 120.0)
AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE})


class GrpcChannel:
    """See the module's text.

    Args:
        target: "host:port".
        service: full name of the service.
        ca: certificate authority of the server (PEM file); None: those of the system.
        certificate, key: of this app (PEM files).
        server_name: in the server's certificate, where it is not the host.
        insecure: no TLS; for loopback alone.

    Raises:
        ServiceError: a file cannot be read, or no TLS elsewhere than on loopback.
    """

    def __init__(
        self,
        target: str,
        service: str,
        *,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
        insecure: bool = False,
    ) -> None:
        self.target, self._service = target, service
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, not that of another client
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
        ]
        if insecure:
            if target.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
                raise ServiceError(
                    f"insecure=True for {target}: only on loopback; give ca= and the app's certificate"
                )
            self.channel = grpc.insecure_channel(target, options)
        else:
            if server_name is not None:
                options.append(("grpc.ssl_target_name_override", server_name))
            credentials = grpc.ssl_channel_credentials(_read(ca), _read(key), _read(certificate))
            self.channel = grpc.secure_channel(target, credentials, options)

    def call(
        self, method: str, request: Any, reply: Any, *, tries: int = TRIES, seconds: float = CALL_SECONDS
    ) -> Any:
        """The answer to one message.

        Args:
            method: of the service.
            request: a message.
            reply: class of the answer.
            tries: where asking twice changes nothing; the service must be away for another one.
            seconds: of one try.

        Raises:
            ServiceError: there is none; ServerBusy and NotPublished say why.
        """
        call: Callable[..., Any] = self.channel.unary_unary(
            f"/{self._service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        for attempt in range(1, tries + 1):
            try:
                return call(request, timeout=seconds)
            except grpc.RpcError as error:
                if attempt == tries or error.code() not in AGAIN:
                    raise self.error_of(method, error) from error
            except ValueError as error:
                raise self.closed(method) from error
            pause(attempt)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Let the connection go; calls that wait end."""
        self.channel.close()

    def closed(self, method: str) -> ServiceError:
        """For grpc's ValueError, which says that of a channel."""
        return ServiceError(f"{method} at {self.target}: the connection was closed; open the client anew")

    def error_of(self, method: str, error: grpc.RpcError) -> ServiceError:
        """One line of a status; what a server says at length is cut, and nothing in it steers a terminal."""
        code, said = error.code(), " ".join(str(error.details() or "").split())
        text = "".join(filter(str.isprintable, said))[:200]
        what = f"{method} at {self.target}: {code.name.lower().replace('_', ' ')} ({text})"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ServerBusy(f"{what}; come back later", _window(error))
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return ServiceError(
                f"{what}; check the address, the certificates and the network, then try again"
            )
        if code is grpc.StatusCode.NOT_FOUND:
            return NotPublished(f"{what}; check the population")
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return ServiceError(f"{what}; get a new token from the app's login")
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return ServiceError(f"{what}; check in again later")
        return ServiceError(f"{what}; check the population")


def pause(attempt: int) -> None:
    """Before another try, longer each time, with jitter."""
    time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))


def _window(error: grpc.RpcError) -> tuple[float, float]:
    """When to come back, as the service says, within reason."""
    said = {str(entry.key): entry.value for entry in error.trailing_metadata() or ()}
    try:
        first, last = float(said["retry-min-seconds"]), float(said["retry-max-seconds"])
    except (KeyError, ValueError, TypeError):
        return BUSY_SECONDS
    return (first, last) if 0 <= first <= last <= 7 * 86_400 else BUSY_SECONDS


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ServiceError(f"{path} cannot be read ({error.strerror}): give a PEM file") from error
