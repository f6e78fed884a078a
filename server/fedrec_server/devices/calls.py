"""The calls of the device service, one implementation for every form in which they come: bytes in, bytes out.

    check in -> get task -> join -> stage, stage, upload, stage, ... -> over

A call with a valid session is limited by its session; every other call by its address and the app's certificate.
What a caller is refused is a status and a fixed text. Out of scope: reading a message within its time
(`network.call_guard`), who may join (`admission`), the database (`state`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
from sqlalchemy.exc import SQLAlchemyError

from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices._cohort_calls import CohortCalls
from fedrec_server.devices._entry_calls import EntryCalls
from fedrec_server.devices._sessions import Sessions
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.network.call_guard import Caller, parsed
from fedrec_server.network.limits import Buckets
from fedrec_server.network.refusals import Refused

log = logging.getLogger(__name__)

SERVICE = "fedrec.devices.v1.DeviceService"
#: Certificates of apps remembered at once.
APPS = 100
Handler = Callable[[Any, Caller], Any]


class DeviceCalls:
    """Answers calls; safe for several threads.

    Args:
        entry: calls without a session.
        cohort: calls of devices in a cohort.
        sessions: that are known.
        limits: of a front end.
    """

    def __init__(
        self, entry: EntryCalls, cohort: CohortCalls, sessions: Sessions, limits: DeviceLimits
    ) -> None:
        network = limits.network
        self._sessions, self._cohort = sessions, cohort
        self._by_address = Buckets(network.calls_per_second, network.burst, network.addresses)
        self._by_app = Buckets(network.app_calls_per_second, network.app_burst, APPS)
        self._by_session = Buckets(limits.session_calls_per_second, limits.session_burst, limits.sessions)
        self.methods: dict[str, tuple[Any, Any, Handler]] = {
            "CheckIn": (messages.CheckInRequest, messages.CheckInReply, entry.check_in),
            "GetTask": (messages.TaskRequest, messages.Document, entry.task),
            "Join": (messages.JoinRequest, messages.JoinReply, entry.join),
            "Stage": (messages.StageRequest, messages.StageReply, cohort.stage),
            "Upload": (messages.UploadRequest, messages.UploadReply, cohort.upload),
            "Content": (messages.ContentRequest, messages.Piece, cohort.content),
            "Leave": (messages.LeaveRequest, messages.LeaveReply, cohort.leave),
        }

    @property
    def held(self) -> int:
        """How many calls are held now."""
        return self._cohort.held.taken

    def answer(self, method: str, content: bytes, caller: Caller) -> bytes:
        """The answer to a message of protobuf.

        Raises:
            Refused: with what the caller is sent.
        """
        kind, _, handler = self.methods[method]
        request = parsed(kind, content)
        self._admit(getattr(request, "session", b""), caller)
        try:
            return bytes(handler(request, caller).SerializeToString())
        except SQLAlchemyError as error:
            log.error("the database refused a call: %s", str(error).partition("\n")[0])
            raise Refused(grpc.StatusCode.UNAVAILABLE, "try again", retry=True) from error

    def _admit(self, session: bytes, caller: Caller) -> None:
        if self._sessions.is_known(session):
            allowed = self._by_session.take(session.hex())
        else:
            allowed = self._by_address.take(caller.address) and self._by_app.take(caller.app)
        if not allowed:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", retry=True)
