"""Who may call, how often and for how long; what a caller is told when it goes wrong.

The message of a call is read and errors become a status in `network.call_guard`. Out of scope: what is answered
(`handlers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_server.network.call_guard import Caller, CallGuard, Stream, expect_room, parsed
from fedrec_server.network.limits import Buckets, Limits, Places
from fedrec_server.network.refusals import Refused
from fedrec_server.network.watchdog import Watchdog
from fedrec_server.service._handlers import ModelService

SERVICE = "fedrec.v1.ModelService"
PIECE_BYTES = 256 << 10
#: Certificates of apps remembered at once.
APPS = 100


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
        self.guard = CallGuard(
            watchdog, self.under_way, limits.message_seconds, limits.retry_seconds, self._admit
        )

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For a server; nothing but these methods is answered."""
        answers = self._answers
        unary: dict[str, tuple[Callable[[Any], Any], Any]] = {
            "CheckIn": (answers.check_in, messages.CheckInRequest),
        }
        methods = {name: self._unary(call, kind) for name, (call, kind) in unary.items()}
        methods["SendMetrics"] = self._unary(answers.send_metrics, messages.MetricsRequest, addressed=True)
        methods["Fetch"] = grpc.stream_stream_rpc_method_handler(self._fetch, response_serializer=_to_bytes)
        return (grpc.method_handlers_generic_handler(SERVICE, methods), self.guard.health(SERVICE))

    def _unary(self, call: Callable[..., Any], kind: Any, addressed: bool = False) -> grpc.RpcMethodHandler:
        """`addressed`: the answer has limits of its own on an address, which it is given."""

        def answer(content: bytes, caller: Caller) -> bytes:
            request = parsed(kind, content)
            return _to_bytes(call(request, caller.address) if addressed else call(request))

        return self.guard.unary(answer)

    def _fetch(self, stream: Stream, context: grpc.ServicerContext) -> Iterator[messages.Piece]:
        """Piece by piece, no faster than they are taken, and no slower than the limits allow."""
        limits, watchdog = self._limits, self._watchdog
        with (
            self.guard.guarded(context) as caller,
            self.downloads.one(caller.address) as free,
            watchdog.within(limits.download_seconds, context.cancel),
        ):
            expect_room(free)
            request = parsed(messages.FetchRequest, self.guard.message(stream, context))
            piece = self._answers.fetch(request)
            for content in _pieces(piece.path, piece.offset):
                with watchdog.within(limits.piece_seconds, context.cancel):
                    yield messages.Piece(content=content)  # resumes when the piece is taken

    def _admit(self, caller: Caller) -> None:
        if not self._by_address.take(caller.address) or not self._by_app.take(caller.app):
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", retry=True)


def _pieces(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while content := file.read(PIECE_BYTES):
            yield content


def _to_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
