"""The model service over gRPC: one connection, timeouts, a few retries where asking twice changes nothing.

TLS with the app's own certificate; without TLS on loopback only, and only when asked for. Nothing that comes is
believed here: metadata is signed, files are held against hashes in it (`trusted_metadata`, `training`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc

from fedrec.core.errors import CampaignOver, NotPublished, ServerBusy, ServiceError
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_client.updates.transport import CheckIn, CheckInAnswer, Enrolment

SERVICE = "fedrec.v1.ModelService"
CALL_SECONDS = 10.0
#: A device that leaves does not wait long for the service to hear of it.
LEAVE_SECONDS = 2.0
DOWNLOAD_SECONDS = 600.0
TRIES = 3
#: Wait before another try, doubled each time, with jitter.
PAUSE_SECONDS = 0.3
MAX_ANSWER_BYTES = 5 << 20
BUSY_SECONDS = (60.0, 120.0)
_AGAIN = {grpc.StatusCode.UNAVAILABLE}


class GrpcTransport:
    """See `Transport`.

    Args:
        target: "host:port".
        ca: certificate authority of the server (PEM file); None: those of the system.
        certificate, key: of this app (PEM files).
        server_name: in the server's certificate, where it is not the host.
        insecure: no TLS; for loopback alone.

    Raises:
        ServiceError: a file cannot be read, or no TLS elsewhere than on loopback.
    """

    takes_counters = True

    def __init__(
        self,
        target: str,
        *,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
        insecure: bool = False,
    ) -> None:
        self._target = target
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
        ]
        if insecure:
            if target.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
                raise ServiceError(
                    f"insecure=True for {target}: only on loopback; give ca= and the app's certificate"
                )
            self._channel = grpc.insecure_channel(target, options)
        else:
            if server_name is not None:
                options.append(("grpc.ssl_target_name_override", server_name))
            credentials = grpc.ssl_channel_credentials(_read(ca), _read(key), _read(certificate))
            self._channel = grpc.secure_channel(target, credentials, options)

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """See `Transport`."""
        reply = self._call(
            "CheckIn",
            messages.CheckInRequest(
                population=request.population,
                client_version=request.client_version,
                model_version=request.model_version,
                trains=request.trains,
            ),
            messages.CheckInReply,
        )
        window = (reply.retry_min_seconds, reply.retry_max_seconds)
        return CheckInAnswer(window, reply.campaign)

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`; tried again while nothing has come, not taken up again after that: the caller keeps it."""
        call = self._channel.unary_stream(
            f"/{SERVICE}/Fetch",
            request_serializer=messages.FetchRequest.SerializeToString,
            response_deserializer=messages.Piece.FromString,
        )
        request = messages.FetchRequest(population=population, path=path, offset=offset)
        for attempt in range(1, TRIES + 1):
            came = False
            try:
                for piece in call(request, timeout=DOWNLOAD_SECONDS):
                    came = True
                    yield piece.content
                return
            except grpc.RpcError as error:
                if came or attempt == TRIES or error.code() not in _AGAIN:
                    raise self._told("Fetch", error) from error
            except ValueError as error:
                raise self._closed("Fetch") from error
            _pause(attempt)

    def enrol(self, enrolment: Enrolment) -> None:
        """See `Transport`."""
        request = messages.EnrolRequest(
            campaign=enrolment.campaign,
            identity=enrolment.identity,
            node_key=enrolment.node_key,
            users=enrolment.users,
            token=enrolment.token,
        )
        self._call("Enrol", request, messages.EnrolReply)

    def task(self, campaign: str, identity: bytes) -> bytes | None:
        """See `Transport`."""
        request = messages.TaskRequest(campaign=campaign, identity=identity)
        return bytes(self._call("GetTask", request, messages.Document).content) or None

    def goes_on(self, campaign: str, identity: bytes) -> bool:
        """See `Transport`; asked often, so tried once."""
        request = messages.TaskRequest(campaign=campaign, identity=identity, known=True)
        try:
            self._call("GetTask", request, messages.Document, tries=1)
        except CampaignOver:
            return False
        return True

    def leave(self, campaign: str, identity: bytes, signature: bytes) -> None:
        """See `Transport`."""
        request = messages.LeaveRequest(campaign=campaign, identity=identity, signature=signature)
        self._call("Leave", request, messages.LeaveReply, tries=1, seconds=LEAVE_SECONDS)

    def send_metrics(
        self, population: str, model_version: int, counters: Mapping[str, float], token: str
    ) -> None:
        """See `Transport`."""
        request = messages.MetricsRequest(
            population=population, model_version=model_version, counters=dict(counters), token=token
        )
        self._call("SendMetrics", request, messages.MetricsReply)

    def close(self) -> None:
        """See `Transport`."""
        self._channel.close()

    def _call(
        self, method: str, request: Any, reply: Any, tries: int = TRIES, seconds: float = CALL_SECONDS
    ) -> Any:
        call: Callable[..., Any] = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        for attempt in range(1, tries + 1):
            try:
                return call(request, timeout=seconds)
            except grpc.RpcError as error:
                if attempt == tries or error.code() not in _AGAIN:
                    raise self._told(method, error) from error
            except ValueError as error:
                raise self._closed(method) from error
            _pause(attempt)
        raise AssertionError("unreachable")

    def _closed(self, method: str) -> ServiceError:
        """For grpc's ValueError, which says that of a channel."""
        return ServiceError(f"{method} at {self._target}: the connection was closed; open the client anew")

    def _told(self, method: str, error: grpc.RpcError) -> ServiceError:
        """One line of a status; what a server says at length is cut, and nothing in it steers a terminal."""
        code, said = error.code(), " ".join(str(error.details() or "").split())
        text = "".join(filter(str.isprintable, said))[:200]
        what = f"{method} at {self._target}: {code.name.lower().replace('_', ' ')} ({text})"
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
        if code is grpc.StatusCode.ABORTED:
            return CampaignOver("the campaign is over: wait for another")
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return ServiceError(f"{what}; check in again later")
        return ServiceError(f"{what}; check the population")


def _pause(attempt: int) -> None:
    """Before another try, longer each time, with jitter."""
    time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))


def _window(error: grpc.RpcError) -> tuple[float, float]:
    """When to come back, as the service says, within reason."""
    told = {str(entry.key): entry.value for entry in error.trailing_metadata() or ()}
    try:
        first, last = float(told["retry-min-seconds"]), float(told["retry-max-seconds"])
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
