"""The model service over gRPC: check-ins, files in pieces, counters.

Nothing that comes is believed here: metadata is signed, files are held against hashes in it (`trusted_metadata`).
Out of scope: the connection (`grpc_channel`), training (`fedrec_client.training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_client.updates.grpc_channel import AGAIN, TRIES, GrpcChannel, pause
from fedrec_client.updates.transport import CheckIn, CheckInAnswer

SERVICE = "fedrec.v1.ModelService"
DOWNLOAD_SECONDS = 600.0


class GrpcTransport:
    """See `Transport`.

    Args:
        target: "host:port".
        connection: see `GrpcChannel`.

    Raises:
        ServiceError: a file cannot be read, or no TLS elsewhere than on loopback.
    """

    takes_counters = True

    def __init__(self, target: str, **connection: Any) -> None:
        self._line = GrpcChannel(target, SERVICE, **connection)

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """See `Transport`."""
        reply = self._line.call(
            "CheckIn",
            messages.CheckInRequest(
                population=request.population,
                client_version=request.client_version,
                model_version=request.model_version,
            ),
            messages.CheckInReply,
        )
        return CheckInAnswer((reply.retry_min_seconds, reply.retry_max_seconds))

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`; tried again while nothing has come, not taken up again after that: the caller keeps it."""
        call = self._line.channel.unary_stream(
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
                if came or attempt == TRIES or error.code() not in AGAIN:
                    raise self._line.error_of("Fetch", error) from error
            except ValueError as error:
                raise self._line.closed("Fetch") from error
            pause(attempt)

    def send_metrics(
        self, population: str, model_version: int, counters: Mapping[str, float], token: str
    ) -> None:
        """See `Transport`."""
        request = messages.MetricsRequest(
            population=population, model_version=model_version, counters=dict(counters), token=token
        )
        self._line.call("SendMetrics", request, messages.MetricsReply)

    def close(self) -> None:
        """See `Transport`."""
        self._line.close()
