"""Reads the message of a gRPC call within its time, within limits, and turns whatever goes wrong into a status.

Every method is taken as a stream of bytes, and its one message is read here, under a time limit. Left to gRPC, a
caller that begins a call and sends nothing would hold a thread for good, and a message that cannot be parsed the
stream of its call: a few dozen of either, and no one else is served. (gRPC's asyncio server, which needs no threads
for this, ends altogether on a path that is not UTF-8, as of grpcio 1.85.)
What goes wrong inside is logged, and callers are sent a status without it. Out of scope: what is answered, and which
limits hold for whom (`Admit`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from fedrec.core.errors import FedrecError, RegistryError
from fedrec_server.network.limits import Places
from fedrec_server.network.refusals import Refused
from fedrec_server.network.relay import Relay
from fedrec_server.network.watchdog import Watchdog

log = logging.getLogger(__name__)

HEALTH = "grpc.health.v1.Health"
RETRY = ("retry-min-seconds", "retry-max-seconds")
Stream = Iterator[bytes]


@dataclass(frozen=True)
class Caller:
    """Of a call.

    Attributes:
        address: as a limit knows it.
        app: which app's certificate it has shown; all without one count as one app.
    """

    address: str
    app: str


Admit = Callable[[Caller], None]
Answer = Callable[[bytes, Caller], bytes]


class CallGuard:
    """Around the answers of a service.

    Args:
        watchdog: ends what is late.
        places: calls at once, by address.
        message_seconds: until the message of a call has come.
        retry_seconds: which callers that are refused for a while are sent.
        admit: raises `Refused` when a caller asks too much; called before its message is read.
    """

    def __init__(
        self,
        watchdog: Watchdog,
        places: Places,
        message_seconds: float,
        retry_seconds: tuple[float, float],
        admit: Admit,
    ) -> None:
        self._watchdog, self.places, self._admit = watchdog, places, admit
        self._message_seconds, self._retry_seconds = message_seconds, retry_seconds
        #: Sent to callers that ask for health.
        self.serving = True
        #: Knows the addresses of callers; set before the server starts.
        self.relay: Relay | None = None

    def unary(self, answer: Answer) -> grpc.RpcMethodHandler:
        """A method with one message and one answer, both as bytes."""

        def handle(stream: Stream, context: grpc.ServicerContext) -> bytes:
            with self.guarded(context) as caller:
                return answer(self.message(stream, context), caller)

        return grpc.stream_unary_rpc_method_handler(handle)

    def health(self, service: str) -> grpc.GenericRpcHandler:
        """Health is answered when asked, and not watched."""

        def check(content: bytes, _: Caller) -> bytes:
            request = parsed(health_pb2.HealthCheckRequest, content)
            if request.service not in ("", service):
                raise Refused(grpc.StatusCode.NOT_FOUND, "no such service")
            states = health_pb2.HealthCheckResponse
            state = states.SERVING if self.serving else states.NOT_SERVING
            return bytes(states(status=state).SerializeToString())

        return grpc.method_handlers_generic_handler(HEALTH, {"Check": self.unary(check)})

    @contextmanager
    def guarded(self, context: grpc.ServicerContext) -> Iterator[Caller]:
        """Let a caller in within the limits; all errors become a status."""
        try:
            relay = self.relay
            entry = relay.entry(context.peer()) if relay else None
            if relay is None or entry is None:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "not on this port")
            entry.app = entry.app or _app(context)
            caller = Caller(entry.address, entry.app)
            self._admit(caller)
            with self.places.one(caller.address) as free:
                expect_room(free)
                relay.authenticated(entry)
                yield caller
        except Exception as error:
            self._refuse(context, error)

    def message(self, stream: Stream, context: grpc.ServicerContext) -> bytes:
        """The one message of a call, in time.

        Raises:
            Refused: there is none.
        """
        with self._watchdog.within(self._message_seconds, context.cancel):
            content = next(stream, None)
        if content is None:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message")
        return content

    def _refuse(self, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        refused = as_refusal(error)
        if refused.retry:
            seconds = zip(RETRY, self._retry_seconds, strict=True)
            context.set_trailing_metadata([(name, f"{value:.0f}") for name, value in seconds])
        context.abort(refused.code, refused.text)
        raise AssertionError("unreachable")


def as_refusal(error: Exception) -> Refused:
    """What a caller is sent for an error; what is not meant for it is logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, grpc.RpcError):  # of gRPC itself, when a call is over before its time
        return Refused(grpc.StatusCode.CANCELLED, "cancelled")
    if isinstance(error, RegistryError):
        log.info("refused: %s", error)
        return Refused(grpc.StatusCode.FAILED_PRECONDITION, "not possible now")
    if isinstance(error, FedrecError):
        log.error("refused: %s", error)
    else:
        log.error("a call failed", exc_info=error)
    return Refused(grpc.StatusCode.INTERNAL, "internal error")


def parsed(kind: Any, content: bytes) -> Any:
    """A message of protobuf.

    Raises:
        Refused: the bytes are not one.
    """
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message of this call") from error


def expect_room(free: bool) -> None:
    """Refuse for a while where there was no free place."""
    if not free:
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry=True)


def _app(context: grpc.ServicerContext) -> str:
    certificates = context.auth_context().get("x509_pem_cert", ())
    return hashlib.sha256(b"".join(certificates)).hexdigest()
