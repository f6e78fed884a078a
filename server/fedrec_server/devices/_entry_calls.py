"""Calls of devices that are not in a cohort: is there a job, what is its task, may I join.

A device that comes too late is sent away until the next cohort may form: soon where it would fill that cohort, else
at the pace of check-ins. Out of scope: limits on calls (`calls`).
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Mapping

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedrec.wire.device_messages import PROTOCOL, join_statement
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices._board import Board, View
from fedrec_server.devices._store import Store
from fedrec_server.devices.admission.verifier import Admission
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.state import cohorts
from fedrec_server.devices.state.cohorts import Joining
from fedrec_server.devices.state.jobs import JobRow
from fedrec_server.network.call_guard import Caller
from fedrec_server.network.refusals import Refused

_JOB = re.compile(r"[0-9a-f]{32}")
_CLIENT = re.compile(r"[0-9.]{1,23}")
_POPULATION = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
MAX_EVIDENCE_BYTES = 16 << 10


class EntryCalls:
    """Safe for several threads.

    Args:
        board: what is known of jobs and cohorts.
        store: writes joins.
        admissions: verifiers by name; one of them must be passed. None: every device may join.
        limits: of a front end.
    """

    def __init__(
        self, board: Board, store: Store, admissions: Mapping[str, Admission] | None, limits: DeviceLimits
    ) -> None:
        self._board, self._store, self._limits = board, store, limits
        self._admissions = admissions or {}
        self._lock = threading.Lock()
        self._soon: Counter[str] = Counter()

    def check_in(self, request: messages.CheckInRequest, caller: Caller) -> messages.CheckInReply:
        """Whether there is a job, and when to ask again."""
        expect_protocol(request.protocol)
        expect(bool(_POPULATION.fullmatch(request.population)), "population: expected its name")
        expect(bool(_CLIENT.fullmatch(request.client_version)), "client_version: expected e.g. 0.1.0")
        first, last = self._limits.network.retry_seconds
        jobs = [job for job in self._board.jobs if job.population == request.population]
        joinable = [job for job in jobs if self._board.forming(job.id) is not None]
        chosen = random.choice(joinable or jobs) if jobs else None
        return messages.CheckInReply(
            retry_min_seconds=first,
            retry_max_seconds=last,
            job=chosen.id if chosen else "",
            joinable=bool(joinable),
        )

    def task(self, request: messages.TaskRequest, caller: Caller) -> messages.Document:
        """The signed task of a job that devices can join."""
        return messages.Document(content=self._job(request.job).document)

    def join(self, request: messages.JoinRequest, caller: Caller) -> messages.JoinReply:
        """A place in the cohort that forms now, or when to come back."""
        expect_protocol(request.protocol)
        job = self._job(request.job)
        _expect_proof(request)
        view = self._board.forming(job.id)
        if view is None or _too_early(job, request.last_round, view):
            return self._later(job)
        self._verify(request, caller)
        session = cohorts.new_session(view.cohort.id)
        place = self._store.join(Joining(view.cohort.id, session, request.identity), caller.address)
        if place == -1:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "joins of a day: enough", retry=True)
        return self._later(job) if place is None else messages.JoinReply(session=session)

    def _job(self, job: str) -> JobRow:
        expect(bool(_JOB.fullmatch(job)), "job: expected 32 hexadecimal digits")
        found = self._board.job(job)
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "no such job now")
        return found

    def _verify(self, request: messages.JoinRequest, caller: Caller) -> None:
        if not self._admissions:
            return
        verifier = self._admissions.get(request.admission)
        if verifier is None:
            names = " or ".join(sorted(self._admissions))
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"admission: expected {names}")
        expect(len(request.evidence) <= MAX_EVIDENCE_BYTES, "evidence: too long")
        refusal = verifier.verify(request.job, request.identity, request.evidence, caller.address)
        if refusal is not None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, refusal)

    def _later(self, job: JobRow) -> messages.JoinReply:
        """When a device that came too late is to come back."""
        first, last = self._limits.network.retry_seconds
        running = self._board.running(job.id)
        if running is not None and self._is_soon(running.cohort.id, job.most):
            first = min(self._limits.soon_seconds, first)
            last = 2 * first
        return messages.JoinReply(retry_after_seconds=random.uniform(first, last))

    def _is_soon(self, cohort: str, most: int) -> bool:
        """For as many devices as the next cohort takes; the others come at the pace of check-ins."""
        with self._lock:
            self._soon[cohort] += 1
            if len(self._soon) > 1000:
                self._soon = Counter({cohort: self._soon[cohort]})
            return self._soon[cohort] <= most


def expect(holds: bool, text: str) -> None:
    """Refuse a field that is not what it must be."""
    if not holds:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def expect_protocol(version: int) -> None:
    """This version of the calls, or the one before."""
    if version not in (PROTOCOL, PROTOCOL - 1):
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "update the app")


def _expect_proof(request: messages.JoinRequest) -> None:
    expect(len(request.identity) == 32, "identity: expected 32 bytes")
    try:
        key = Ed25519PublicKey.from_public_bytes(request.identity)
        key.verify(request.proof, join_statement(request.job))
    except (InvalidSignature, ValueError) as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, "proof: expected the identity's signature over the job"
        ) from error


def _too_early(job: JobRow, last_round: int, view: View) -> bool:
    """Whether the device would refuse this round: it took part in it before, or too few rounds ago."""
    number = view.cohort.round
    return last_round > 0 and 0 < number < last_round + (job.cycle or 1)
