"""Calls of devices in a cohort: the next question, the answer to the last one, pieces of long ones, leaving.

An answer counts once it is on disk, and counts once. A device whose cohort is over is sent the reason and when to
check in again: done, failed, too_few, late, full, aborted or unknown. Out of scope: limits on calls (`calls`).
"""

from __future__ import annotations

import random
import time

import grpc
import numpy as np

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Reply
from fedrec.wire.device_messages import load
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices._board import Board, View
from fedrec_server.devices._entry_calls import expect
from fedrec_server.devices._sessions import Sessions
from fedrec_server.devices._store import NewAnswer, Store
from fedrec_server.devices._uploads import Uploads
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.state import cohorts
from fedrec_server.devices.state.cohorts import Member
from fedrec_server.devices.state.stages import StageRow, Vector
from fedrec_server.network.call_guard import Caller
from fedrec_server.network.limits import Places
from fedrec_server.network.refusals import Refused

UNKNOWN, LATE, FAILED = "unknown", "late", "failed"
#: How often it is noted that a device of a cohort that forms is here.
SEEN_SECONDS = cohorts.HERE_SECONDS / 3
MAX_CODE = 64
#: Name of the array that is summed.
VECTOR = "masked"
#: Of an answer beyond its arrays' values.
HEADER_BYTES = 16 << 10


class CohortCalls:
    """Safe for several threads.

    Args:
        board: what is known of cohorts.
        store: the database.
        sessions: that are known.
        limits: of a front end.
    """

    def __init__(self, board: Board, store: Store, sessions: Sessions, limits: DeviceLimits) -> None:
        self._board, self._store, self._sessions, self._limits = board, store, sessions, limits
        self._uploads = Uploads(limits.upload_bytes, limits.upload_idle_seconds)
        self.held = Places(limits.held_calls, limits.held_calls)

    def stage(self, request: messages.StageRequest, caller: Caller) -> messages.StageReply:
        """Take an answer, and hold the call until there is a question or the cohort is over."""
        member = self._sessions.find(request.session)
        if member is None:
            return self._over(cohorts.cohort_of(request.session))
        if request.answered and (request.answer or request.refused):
            self._take(member, request)
        until = time.monotonic() + self._limits.hold_seconds
        with self.held.one("") as free:
            while True:
                view = self._board.view(member.cohort)
                reply = self._next(member, request.known, view)
                if reply is not None:
                    if reply.state == messages.OVER:
                        self._sessions.forget(request.session)
                    return reply
                self._note(request.session, view)
                left = until - time.monotonic()
                if view is None or left <= 0 or not free or self._board.closing:
                    pause = self._limits.retry_seconds
                    wait = 0.0 if free and self._limits.hold_seconds else random.uniform(pause, 2 * pause)
                    return messages.StageReply(state=messages.WAIT, retry_after_seconds=wait)
                view.changed.wait(left)

    def upload(self, request: messages.UploadRequest, caller: Caller) -> messages.UploadReply:
        """Take a piece of a long answer; the last piece makes it count."""
        expect(len(request.sha256) == 32, "sha256: expected 32 bytes")
        expect(0 < request.total <= self._limits.answer_bytes, "total: expected a size within the limits")
        expect(request.offset <= request.total, "offset: beyond the end")
        expect(len(request.content) <= self._limits.piece_bytes, "content: expected a smaller piece")
        member = self._sessions.find(request.session)
        if member is None:
            return messages.UploadReply(reason=self._over(cohorts.cohort_of(request.session)).reason)
        stage = self._stage(member.cohort, request.number)
        key = (cohorts.digest(request.session), request.number)
        if stage is None or not stage.open:
            self._uploads.forget(key)
            there = self._store.has_answered(member.cohort, request.number, member.place)
            reason = "" if there else LATE
            return messages.UploadReply(received=request.total if there else 0, accepted=there, reason=reason)
        expect(request.total <= _most_bytes(stage, self._limits), "total: expected the size of an answer")
        if not request.content:
            return self._received(member, request, key)
        received = self._uploads.add(key, request.total, request.sha256, request.offset, request.content)
        if received is None:
            pause = self._limits.retry_seconds
            return messages.UploadReply(retry_after_seconds=random.uniform(pause, 2 * pause))
        if received < request.total:
            return messages.UploadReply(received=received)
        return self._finish(member, stage, key, request.total)

    def content(self, request: messages.ContentRequest, caller: Caller) -> messages.Piece:
        """A piece of the common part of a question."""
        expect(len(request.sha256) == 32, "sha256: expected 32 bytes")
        member = self._sessions.find(request.session)
        whole = self._store.content(member.cohort, request.sha256.hex()) if member else None
        if whole is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such content now")
        expect(request.offset <= len(whole), "offset: beyond the end")
        most = min(request.most_bytes or self._limits.piece_bytes, self._limits.piece_bytes)
        return messages.Piece(content=whole[request.offset : request.offset + most])

    def leave(self, request: messages.LeaveRequest, caller: Caller) -> messages.LeaveReply:
        """The device is missing from now on."""
        if self._sessions.find(request.session) is not None:
            self._store.leave(cohorts.digest(request.session))
            self._sessions.forget(request.session)
        return messages.LeaveReply()

    # Answers -------------------------------------------------------------------------------------------

    def _take(self, member: Member, request: messages.StageRequest) -> None:
        """A short answer; one that came too late is dropped."""
        expect(len(request.answer) <= self._limits.small_answer_bytes, "answer: expected an upload")
        stage = self._stage(member.cohort, request.answered)
        if stage is None or not stage.open:
            return
        if request.refused:
            code = request.answer[:MAX_CODE].decode("ascii", "replace").encode("ascii", "replace")
            self._store.answer(NewAnswer(member, request.answered, code or b"refused", refused=True))
        else:
            self._store.answer(_new_answer(member, stage, request.answer))

    def _received(
        self, member: Member, request: messages.UploadRequest, key: tuple[bytes, int]
    ) -> messages.UploadReply:
        if self._store.has_answered(member.cohort, request.number, member.place):
            return messages.UploadReply(received=request.total, accepted=True)
        return messages.UploadReply(received=self._uploads.received(key, request.total, request.sha256))

    def _finish(
        self, member: Member, stage: StageRow, key: tuple[bytes, int], size: int
    ) -> messages.UploadReply:
        whole = self._uploads.take(key)
        if whole is None:  # taken by another call of this device, or not what its hash says
            there = self._store.has_answered(member.cohort, stage.number, member.place)
            return messages.UploadReply(received=size if there else 0, accepted=there)
        taken = self._store.answer(_new_answer(member, stage, whole))
        return messages.UploadReply(received=size, accepted=taken, reason="" if taken else LATE)

    def _stage(self, cohort: str, number: int) -> StageRow | None:
        """The stage of this number, if it is the last one."""
        view = self._board.view(cohort)
        if view is not None and view.stage is not None and view.stage.number == number:
            return view.stage
        if view is not None and (view.stage is None or view.stage.number < number):
            self._board.look()  # another front end has handed the question out
            view = self._board.view(cohort)
        return view.stage if view and view.stage and view.stage.number == number else None

    # Questions -----------------------------------------------------------------------------------------

    def _next(self, member: Member, known: int, view: View | None) -> messages.StageReply | None:
        """The next question, or the end; None: there is nothing new."""
        if view is None or view.cohort.state == cohorts.OVER:
            return self._over(member.cohort, view)
        stage = view.stage
        if stage is None or not stage.open or stage.number <= known:
            return None
        own = self._store.own(member.cohort, stage.number, member.place)
        if own is None:
            return self._left_out(member, stage)
        return messages.StageReply(
            state=messages.QUESTION,
            number=stage.number,
            common=bytes.fromhex(stage.common),
            common_bytes=stage.common_bytes,
            own=own,
            deadline_seconds=max(stage.deadline - time.time(), 0.0),
            content=self._short(stage),
        )

    def _short(self, stage: StageRow) -> bytes:
        """The common part, where it is not worth another call."""
        if not 0 < stage.common_bytes <= self._limits.short_content_bytes:
            return b""
        return self._store.content(stage.cohort, stage.common) or b""

    def _left_out(self, member: Member, stage: StageRow) -> messages.StageReply | None:
        """The stage asks others: this device's part in the cohort is over, unless the stage has just closed."""
        self._board.look()
        view = self._board.view(member.cohort)
        if view is None or view.stage != stage:
            return None
        before = stage.number - 1
        there = not before or self._store.has_answered(member.cohort, before, member.place)
        first, _ = self._limits.network.retry_seconds
        return messages.StageReply(
            state=messages.OVER,
            reason=FAILED if there else LATE,
            retry_after_seconds=random.uniform(first, 2 * first),
        )

    def _over(self, cohort: str, view: View | None = None) -> messages.StageReply:
        """Why a session is over, and when to check in again."""
        view = view or self._board.view(cohort)
        if view is not None and view.cohort.state != cohorts.OVER:
            self._board.look()  # its members may be gone because it is over since the last look
            view = self._board.view(cohort)
        first, last = self._limits.network.retry_seconds
        reason, after = UNKNOWN, random.uniform(first, last)
        if view is not None and view.cohort.state == cohorts.OVER:
            reason = view.cohort.outcome
            after = random.uniform(view.cohort.retry_after, 1.5 * view.cohort.retry_after)
        return messages.StageReply(state=messages.OVER, reason=reason, retry_after_seconds=after)

    def _note(self, session: bytes, view: View | None) -> None:
        """A device of a cohort that forms is here."""
        forms = view is not None and view.cohort.state == cohorts.FORMING
        if forms and self._sessions.seen(session, SEEN_SECONDS):
            self._store.see(cohorts.digest(session))


def _most_bytes(stage: StageRow, limits: DeviceLimits) -> int:
    """Of an answer to a stage."""
    if not stage.dtype:
        return limits.answer_bytes
    return stage.length * np.dtype(stage.dtype).itemsize + HEADER_BYTES


def _new_answer(member: Member, stage: StageRow, content: bytes) -> NewAnswer:
    """An answer as it is noted; one to be summed that is not a vector of this stage counts as refused."""
    if not stage.dtype:
        return NewAnswer(member, stage.number, content)
    vector = _vector(stage, content)
    if vector is None:
        return NewAnswer(member, stage.number, b"format", refused=True)
    return NewAnswer(member, stage.number, None, vector=vector)


def _vector(stage: StageRow, content: bytes) -> Vector | None:
    try:
        reply = load(content, Reply)
    except ProtocolError:
        return None
    fits = (reply.kind, reply.round, reply.phase) == (stage.kind, stage.round, stage.phase)
    if not fits or reply.arrays.keys() != {VECTOR}:
        return None
    vector = reply.arrays[VECTOR]
    return vector if (vector.dtype.name, vector.shape) == (stage.dtype, (stage.length,)) else None
