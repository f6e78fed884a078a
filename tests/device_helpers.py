"""Front ends, devices and jobs of made-up questions, for tests of the device service."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrec.core.messages import Reply, Request
from fedrec.wire.device_messages import PROTOCOL, dump, join, join_statement
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.server import FrontEnd, Listening
from fedrec_server.devices.state import jobs
from fedrec_server.devices.state.database import State
from fedrec_server.devices.state.jobs import JobRow
from fedrec_server.network.certificates import make_service_certificates
from fedrec_server.network.grpc_server import Certificates
from fedrec_server.rounds.cohorts import CohortWanted

JOB = "ab" * 16
POPULATION = "films"
SERVICE = "/fedrec.devices.v1.DeviceService/"
REPLIES = {
    "CheckIn": messages.CheckInReply,
    "GetTask": messages.Document,
    "Join": messages.JoinReply,
    "Stage": messages.StageReply,
    "Upload": messages.UploadReply,
    "Content": messages.Piece,
    "Leave": messages.LeaveReply,
}
Answer = Callable[[Request], Reply]


def limits(**changes: Any) -> DeviceLimits:
    """Quick ones."""
    return replace(DeviceLimits(hold_seconds=5.0, poll_seconds=0.05, retry_seconds=0.05), **changes)


def wanted(target: int, least: int | None = None, most: int | None = None, **more: Any) -> CohortWanted:
    """A cohort."""
    settings = {"kind": "train", "phase": "tuning", "round": 1, "wait_seconds": 15.0} | more
    return CohortWanted(target=target, least=least or target, most=most or target, **settings)


def add_job(state: State, job: str = JOB, **changes: Any) -> JobRow:
    """A running job."""
    row = replace(JobRow(job, POPULATION, b"signed", 3, 2, 5), **changes)
    with state.write() as connection:
        jobs.add(connection, row)
    return row


def certificates(folder: Path) -> Certificates:
    """Of a front end; the app's are in the same folder."""
    if not (folder / "ca.crt").exists():
        make_service_certificates(folder)
    return Certificates(*(folder / name for name in ("server.pem", "server.key", "apps.crt")))


@contextmanager
def front_end(
    state: State, tls: Path | None = None, given: DeviceLimits | None = None, **more: Any
) -> Iterator[FrontEnd]:
    """A running one; without TLS where no folder is given."""
    listening = Listening(certificates(tls) if tls else None, **more.pop("listening", {}))
    with FrontEnd(state, listening, limits=given or limits(), **more) as running:
        yield running


def channel(port: int, tls: Path | None = None) -> grpc.Channel:
    """To a front end."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        return grpc.insecure_channel(f"127.0.0.1:{port}", options)
    read = [(tls / name).read_bytes() for name in ("ca.crt", "app.key", "app.pem")]
    return grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*read), options)


@dataclass
class Device:
    """Speaks the calls by hand.

    Attributes:
        channel: to a front end; may be replaced by one to another.
        session: after `join`.
    """

    channel: grpc.Channel
    job: str = JOB
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    session: bytes = b""
    known: int = 0

    @property
    def identity(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def call(self, method: str, request: Any, timeout: float = 30.0) -> Any:
        made = self.channel.unary_unary(
            SERVICE + method, lambda message: message.SerializeToString(), REPLIES[method].FromString
        )
        return made(request, timeout=timeout)

    def check_in(self, **changes: Any) -> messages.CheckInReply:
        fields = {"protocol": PROTOCOL, "population": POPULATION, "client_version": "0.1.0"} | changes
        return self.call("CheckIn", messages.CheckInRequest(**fields))

    def join_request(self, **changes: Any) -> messages.JoinRequest:
        proof = self.key.sign(join_statement(self.job))
        fields = {"protocol": PROTOCOL, "job": self.job, "identity": self.identity, "proof": proof} | changes
        return messages.JoinRequest(**fields)

    def join(self, **changes: Any) -> messages.JoinReply:
        reply = self.call("Join", self.join_request(**changes))
        self.session = reply.session or self.session
        return reply

    def joined(self) -> Device:
        """In a cohort that forms now, or is about to."""
        until = time.monotonic() + 30
        while not self.join().session:
            assert time.monotonic() < until
            time.sleep(0.05)
        return self

    def stage(self, **fields: Any) -> messages.StageReply:
        return self.call("Stage", messages.StageRequest(session=self.session, known=self.known, **fields))

    def content(self, sha256: bytes, size: int) -> bytes:
        whole = b""
        while len(whole) < size:
            request = messages.ContentRequest(session=self.session, sha256=sha256, offset=len(whole))
            whole += self.call("Content", request).content
        assert hashlib.sha256(whole).digest() == sha256
        return whole

    def piece(self, number: int, answer: bytes, offset: int, size: int) -> messages.UploadReply:
        return self.call(
            "Upload",
            messages.UploadRequest(
                session=self.session,
                number=number,
                offset=offset,
                total=len(answer),
                sha256=hashlib.sha256(answer).digest(),
                content=answer[offset : offset + size],
            ),
        )

    def upload(self, number: int, answer: bytes, size: int = 256 << 10) -> messages.UploadReply:
        reply, until = self.piece(number, answer, 0, size), time.monotonic() + 30
        while not reply.accepted and not reply.reason and time.monotonic() < until:
            time.sleep(reply.retry_after_seconds)
            reply = self.piece(number, answer, reply.received, size)
        return reply

    def question(self, reply: messages.StageReply) -> Request:
        common = reply.content
        if reply.common and not common:
            common = self.content(reply.common, reply.common_bytes)
        assert not common or hashlib.sha256(common).digest() == reply.common
        return join(common, reply.own, Request)

    def next(self, **fields: Any) -> messages.StageReply:
        """The next question, or the end."""
        while True:
            reply = self.stage(**fields)
            if reply.state != messages.WAIT:
                return reply
            time.sleep(reply.retry_after_seconds)
            fields = {}

    def take_part(self, answer: Answer, small: int = 64 << 10) -> messages.StageReply:
        """Join, answer all questions, and return the end."""
        reply = self.joined().next()
        while reply.state == messages.QUESTION:
            self.known = reply.number
            content = dump(answer(self.question(reply)))
            if len(content) > small:
                assert self.upload(reply.number, content).accepted
                reply = self.next(answered=reply.number)
            else:
                reply = self.next(answered=reply.number, answer=content)
        return reply


def echo(request: Request) -> Reply:
    """An answer of the node's own number."""
    return Reply(request.kind, request.round, request.phase, {"mine": request.arrays["mine"]}, {})


def vectors(length: int, dtype: str = "uint32") -> Answer:
    """Answers to questions for vectors: the same value everywhere, from the question."""

    def answer(request: Request) -> Reply:
        if "mine" not in request.arrays or request.kind != "train":
            return echo(request)
        values = np.full(length, request.arrays["mine"][0], dtype)
        return Reply(request.kind, request.round, request.phase, {"masked": values}, {})

    return answer


def ask(nodes: list[str], kind: str = "share", **arrays: Any) -> dict[str, Request]:
    """One question each, with the node's own number in it."""
    return {
        node: Request(kind, 1, arrays={"mine": np.array([k + 1], np.uint32)} | arrays)
        for k, node in enumerate(nodes)
    }


class Crowd:
    """Devices in threads of their own; `ends` once they are done."""

    def __init__(self, devices: list[Device], answer: Answer) -> None:
        self.devices = devices
        self.ends: dict[int, messages.StageReply] = {}
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(k, device, answer), daemon=True)
            for k, device in enumerate(devices)
        ]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(60)
        assert not self.errors, self.errors
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self, k: int, device: Device, answer: Answer) -> None:
        try:
            self.ends[k] = device.take_part(answer)
        except BaseException as error:
            self.errors.append(error)
