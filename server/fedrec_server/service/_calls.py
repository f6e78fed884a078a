"""Who may call, how often and for how long; what a caller is told when it goes wrong.

Every method is taken as a stream of bytes, and its one message is read and parsed here, under a time limit. Left to
gRPC, a caller that begins a call and sends nothing would hold a thread for good, and a message that cannot be parsed
the stream of its call: a few dozen of either, and no one else is served. (gRPC's asyncio server, which needs no
threads for this, ends altogether when someone asks for a path that is not UTF-8, as of grpcio 1.85.)
Whatever goes wrong inside is logged and told to no one. Out of scope: what is answered (`handlers`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from fedrec.core.errors import CampaignOver, FedrecError, RegistryError
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_server.network.limits import Buckets, Limits, Places
from fedrec_server.service._handlers import ModelService
from fedrec_server.service._refusals import Refused
from fedrec_server.service._relay import Relay
from fedrec_server.service._watchdog import Watchdog

log = logging.getLogger(__name__)

SERVICE = "fedrec.v1.ModelService"
HEALTH = "grpc.health.v1.Health"
PIECE_BYTES = 256 << 10
RETRY = ("retry-min-seconds", "retry-max-seconds")
#: Certificates of apps remembered at once.
APPS = 100
Stream = Iterator[bytes]


class Calls:
    """The methods of a server, around the answers of a `ModelService`.

    Args:
        answers: what is answered.
        limits: for callers.
        watchdog: ends who is late.
    """

    def __init__(self, answers: ModelService, limits: Limits, watchdog: Watchdog) -> None:
        self._answers, self._limits, self._watchdog = answers, limits, watchdog
        self._by_address = Buckets(limits.calls_per_second, limits.burst, limits.addresses)
        self._by_app = Buckets(limits.app_calls_per_second, limits.app_burst, APPS)
        self.under_way = Places(limits.calls_per_address, limits.threads)
        self.downloads = Places(limits.downloads_per_address, limits.downloads)
        #: Told to whoever asks for health.
        self.serving = True
        #: Knows the addresses of callers; set before the server starts.
        self.relay: Relay | None = None

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For a server; nothing but these methods is answered. Health is told when asked, and not watched."""
        answers = self._answers
        unary: dict[str, tuple[Callable[[Any], Any], Any]] = {
            "CheckIn": (answers.check_in, messages.CheckInRequest),
            "GetTask": (answers.task, messages.TaskRequest),
            "Leave": (answers.leave, messages.LeaveRequest),
        }
        methods = {name: self._unary(call, kind) for name, (call, kind) in unary.items()}
        methods["Enrol"] = self._unary(answers.enrol, messages.EnrolRequest, addressed=True)
        methods["SendMetrics"] = self._unary(answers.send_metrics, messages.MetricsRequest, addressed=True)
        methods["Fetch"] = grpc.stream_stream_rpc_method_handler(self._fetch, response_serializer=_to_bytes)
        health = {"Check": self._unary(self._health, health_pb2.HealthCheckRequest)}
        return (
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler(HEALTH, health),
        )

    def _unary(self, call: Callable[..., Any], kind: Any, addressed: bool = False) -> grpc.RpcMethodHandler:
        """`addressed`: the answer has limits of its own on an address, which it is given."""

        def answer(stream: Stream, context: grpc.ServicerContext) -> Any:
            with self._guarded(context):
                request = self._request(stream, context, kind)
                return call(request, self._address(context)) if addressed else call(request)

        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=_to_bytes)

    def _fetch(self, stream: Stream, context: grpc.ServicerContext) -> Iterator[messages.Piece]:
        """Piece by piece, no faster than they are taken, and no slower than the limits allow."""
        limits, watchdog = self._limits, self._watchdog
        with (
            self._guarded(context),
            self.downloads.one(self._address(context)) as free,
            watchdog.within(limits.download_seconds, context.cancel),
        ):
            _expect_room(free)
            piece = self._answers.fetch(self._request(stream, context, messages.FetchRequest))
            for content in _pieces(piece.path, piece.offset):
                with watchdog.within(limits.piece_seconds, context.cancel):
                    yield messages.Piece(content=content)  # resumes when the piece is taken

    @contextmanager
    def _guarded(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Let a caller in within the limits; all errors become a status."""
        try:
            address = self._address(context)
            if not self._by_address.take(address) or not self._by_app.take(_app(context)):
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", retry=True)
            with self.under_way.one(address) as free:
                _expect_room(free)
                if self.relay is not None:
                    self.relay.authenticated(context.peer())
                yield
        except Exception as error:
            self._refuse(context, error)

    def _address(self, context: grpc.ServicerContext) -> str:
        """Whom the limits hold for."""
        address = self.relay.address(context.peer()) if self.relay else None
        if address is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "not on this port")
        return address

    def _request(self, stream: Stream, context: grpc.ServicerContext, kind: Any) -> Any:
        with self._watchdog.within(self._limits.message_seconds, context.cancel):
            content = next(stream, None)
        if content is None:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message")
        try:
            return kind.FromString(content)
        except DecodeError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message of this call") from error

    def _health(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE):
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such service")
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self.serving else states.NOT_SERVING)

    def _refuse(self, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        code, text, retry = _status(error)
        if retry:
            seconds = zip(RETRY, self._limits.retry_seconds, strict=True)
            context.set_trailing_metadata([(name, f"{value:.0f}") for name, value in seconds])
        context.abort(code, text)
        raise AssertionError("unreachable")


def _status(error: Exception) -> tuple[grpc.StatusCode, str, bool]:
    """What a caller is told of an error: status, text, and whether also when to come back."""
    if isinstance(error, Refused):
        return error.code, error.text, error.retry
    if isinstance(error, grpc.RpcError):  # of gRPC itself, when a call is over before its time
        return grpc.StatusCode.CANCELLED, "cancelled", False
    if isinstance(error, CampaignOver):
        return grpc.StatusCode.ABORTED, "the campaign is over", False
    if isinstance(error, RegistryError):
        log.info("refused: %s", error)
        return grpc.StatusCode.FAILED_PRECONDITION, "not possible now", False
    if isinstance(error, FedrecError):
        log.error("refused: %s", error)
    else:
        log.error("a call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error", False


def _app(context: grpc.ServicerContext) -> str:
    """Which app's certificate a caller has shown; all without one count as one app."""
    certificates = context.auth_context().get("x509_pem_cert", ())
    return hashlib.sha256(b"".join(certificates)).hexdigest()


def _expect_room(free: bool) -> None:
    if not free:
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry=True)


def _pieces(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while content := file.read(PIECE_BYTES):
            yield content


def _to_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
