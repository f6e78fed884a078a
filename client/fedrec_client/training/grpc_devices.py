"""The device service over gRPC; see `DeviceService`. Out of scope: the connection (`grpc_channel`)."""

from __future__ import annotations

from typing import Any, Literal

from fedrec.wire.device_messages import PROTOCOL
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_client.training.device_service import Entrance, Joined, Offer, StageAnswer, Uploaded
from fedrec_client.updates.grpc_channel import GrpcChannel

SERVICE = "fedrec.devices.v1.DeviceService"
#: A call that is held comes back sooner.
STAGE_SECONDS = 60.0
#: A piece of 64 KiB at 64 kbit/s takes 8 seconds.
PIECE_SECONDS = 60.0
#: A device that leaves does not wait long for the service to hear of it.
LEAVE_SECONDS = 2.0
_STATES: dict[int, Literal["wait", "question", "over"]] = {
    messages.WAIT: "wait",
    messages.QUESTION: "question",
    messages.OVER: "over",
}


class GrpcDeviceService:
    """See `DeviceService`.

    Args:
        target: "host:port".
        connection: see `GrpcChannel`.

    Raises:
        ServiceError: a file cannot be read, or no TLS elsewhere than on loopback.
    """

    def __init__(self, target: str, **connection: Any) -> None:
        self._line = GrpcChannel(target, SERVICE, **connection)

    def check_in(self, population: str, client_version: str, model_version: int) -> Offer:
        """See `DeviceService`."""
        request = messages.CheckInRequest(
            protocol=PROTOCOL,
            population=population,
            client_version=client_version,
            model_version=model_version,
        )
        reply = self._line.call("CheckIn", request, messages.CheckInReply)
        return Offer((reply.retry_min_seconds, reply.retry_max_seconds), reply.job, reply.joinable)

    def task(self, job: str) -> bytes:
        """See `DeviceService`."""
        return bytes(self._line.call("GetTask", messages.TaskRequest(job=job), messages.Document).content)

    def join(self, entrance: Entrance) -> Joined:
        """See `DeviceService`; tried once: a second try would be another device."""
        request = messages.JoinRequest(
            protocol=PROTOCOL,
            job=entrance.job,
            identity=entrance.identity,
            proof=entrance.proof,
            admission=entrance.admission,
            evidence=entrance.evidence,
            last_round=entrance.last_round,
        )
        reply = self._line.call("Join", request, messages.JoinReply, tries=1)
        return Joined(bytes(reply.session), reply.retry_after_seconds)

    def stage(
        self, session: bytes, *, answered: int = 0, answer: bytes = b"", refused: bool = False, known: int = 0
    ) -> StageAnswer:
        """See `DeviceService`."""
        request = messages.StageRequest(
            session=session, answered=answered, answer=answer, refused=refused, known=known
        )
        reply = self._line.call("Stage", request, messages.StageReply, tries=1, seconds=STAGE_SECONDS)
        return StageAnswer(
            state=_STATES.get(reply.state, "wait"),
            retry_after_seconds=reply.retry_after_seconds,
            number=reply.number,
            common=bytes(reply.common),
            common_bytes=reply.common_bytes,
            content=bytes(reply.content),
            own=bytes(reply.own),
            deadline_seconds=reply.deadline_seconds,
            reason=reply.reason,
        )

    def upload(
        self, session: bytes, number: int, offset: int, total: int, sha256: bytes, content: bytes
    ) -> Uploaded:
        """See `DeviceService`."""
        request = messages.UploadRequest(
            session=session, number=number, offset=offset, total=total, sha256=sha256, content=content
        )
        reply = self._line.call("Upload", request, messages.UploadReply, tries=1, seconds=PIECE_SECONDS)
        return Uploaded(reply.received, reply.accepted, reply.retry_after_seconds, reply.reason)

    def content(self, session: bytes, sha256: bytes, offset: int) -> bytes:
        """See `DeviceService`."""
        request = messages.ContentRequest(session=session, sha256=sha256, offset=offset)
        return bytes(
            self._line.call("Content", request, messages.Piece, tries=1, seconds=PIECE_SECONDS).content
        )

    def leave(self, session: bytes) -> None:
        """See `DeviceService`."""
        self._line.call(
            "Leave",
            messages.LeaveRequest(session=session),
            messages.LeaveReply,
            tries=1,
            seconds=LEAVE_SECONDS,
        )

    def close(self) -> None:
        """See `DeviceService`."""
        self._line.close()
