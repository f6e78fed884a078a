"""One device in one cohort: takes questions from the device service, has its node answer them, sends the answers.

    join -> question (advertise, share, train, confirm, unmask) -> answer -> ... -> over

Runs in a thread of its own, so that the app's thread can end it at once: a stop closes the connection and interrupts
what is computed (`fedrec.core.interruption`), and nothing is sent or charged afterwards. The charge is written right
before the first byte of the masked vector leaves; every message before it is the same for every history. An answer
that was made once is sent again byte for byte when a connection breaks, and no other is ever made for its question.

A line of 64 kbit/s suffices: long answers and models travel in pieces, whose size follows the time that they take.
Out of scope: which job (`session`), the carrier (`device_service`), the protocol's steps (`fedrec_client.node`).
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from fedrec.core.errors import FedrecError, ProtocolError, ServiceError
from fedrec.core.interruption import Interrupted, check, interruptible
from fedrec.core.messages import Reply, Request
from fedrec.wire.device_messages import dump, join
from fedrec_client.node.outgoing import emit
from fedrec_client.training.device_service import DeviceService, StageAnswer

log = logging.getLogger(__name__)

#: Kinds for which the node reads the user's data before it answers or refuses.
READING = frozenset({"train", "evaluate"})
#: Answers up to this size are sent with `stage`.
SHORT_BYTES = 48 << 10
FIRST_PIECE, LEAST_PIECE, LARGEST_PIECE = 64 << 10, 8 << 10, 512 << 10
#: A piece is to take about so long.
PIECE_SECONDS = 4.0
MAX_COMMON_BYTES = 256 << 20
RETRY_SECONDS = (0.3, 5.0)
T = TypeVar("T")


class Answers(Protocol):
    """What a session asks of a node."""

    def handle(self, request: Request) -> Reply:
        """The reply to a request; raises FedrecError for one that is refused."""


@dataclass(frozen=True)
class Ending:
    """How a session ended.

    Attributes:
        reason: a code of the service, or "stopped", "deadline", "unreachable", or why it was not charged.
        sent: the masked vector was accepted.
        bytes_up: of answers that left.
        retry_after_seconds: when to check in again; 0: the service has not said.
    """

    reason: str
    sent: bool
    bytes_up: int
    retry_after_seconds: float = 0.0


class Over(Exception):  # noqa: N818 - it names what happened
    """The session is over."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds


class CohortSession:
    """See the module's text.

    Args:
        service: the device service.
        session: of this device.
        node: answers.
        charge: writes the charge durably, or raises FedrecError and nothing of the vector leaves.
        stopping: set from another thread; see the module's text.
        deadline: monotonic seconds; nothing is sent later.
        on_step: told the kind of each question when it is being answered.
    """

    def __init__(
        self,
        service: DeviceService,
        session: bytes,
        node: Answers,
        *,
        charge: Callable[[], None],
        stopping: threading.Event,
        deadline: float,
        on_step: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self._service, self._session, self._node = service, session, node
        self._charge, self._stopping, self._deadline, self._on_step = charge, stopping, deadline, on_step
        self._known, self._charged = 0, False
        #: The masked vector was sent; bytes of answers that left.
        self.sent, self.bytes_up = False, 0
        self._piece = FIRST_PIECE

    def run(self) -> Ending:
        """Take part until the session is over."""
        try:
            with interruptible(self._stopping):
                answered, answer, refused = 0, b"", False
                while True:
                    came = self._ask(answered, answer, refused)
                    answered, answer, refused = 0, b"", False
                    if came.state == "over":
                        raise Over(came.reason or "unknown", came.retry_after_seconds)
                    if came.state == "wait":
                        self._sleep(came.retry_after_seconds)
                    else:
                        answered, answer, refused = self._answer(came)
        except Over as over:
            return Ending(over.reason, self.sent, self.bytes_up, over.retry_after_seconds)
        except Interrupted:
            return Ending("stopped", self.sent, self.bytes_up)
        except ProtocolError as error:
            log.warning("a question cannot be read: %s", error)
            return Ending("protocol", self.sent, self.bytes_up)

    # Questions -----------------------------------------------------------------------------------------

    def _ask(self, answered: int, answer: bytes, refused: bool) -> StageAnswer:
        came = self._again(
            lambda: self._service.stage(
                self._session, answered=answered, answer=answer, refused=refused, known=self._known
            ),
            self._deadline,
        )
        self.bytes_up += len(answer)
        return came

    def _answer(self, question: StageAnswer) -> tuple[int, bytes, bool]:
        """Number, answer and whether it is a refusal; a long answer has been uploaded, and is empty here.

        A stop in the middle of this lets nothing be charged or sent any more.
        """
        until = min(self._deadline, time.monotonic() + question.deadline_seconds)
        if question.number <= self._known:
            raise ProtocolError(f"question {question.number} came after {self._known}")
        request = join(self._common(question, until), question.own, Request)
        self._known = question.number
        self._on_step(request.kind)
        made = emit(lambda: self._node.handle(request), quiet=True)
        if request.kind in READING:
            # A refusal may follow from the data, too.
            self._pay()
        if isinstance(made, str):
            return question.number, made.encode(), True
        content = dump(made)
        if len(content) <= SHORT_BYTES:
            self.sent = self.sent or request.kind in READING
            return question.number, content, False
        self._upload(question.number, content, until)
        self.sent = self.sent or request.kind in READING
        return 0, b"", False

    def _pay(self) -> None:
        if self._charged:
            return
        check()
        try:
            self._charge()
        except FedrecError as error:
            raise Over(str(error)) from error
        self._charged = True

    # Pieces --------------------------------------------------------------------------------------------

    def _common(self, question: StageAnswer, until: float) -> bytes:
        """The part that all devices of a stage are sent, in pieces."""
        if not question.common:
            return b""
        if question.common_bytes > MAX_COMMON_BYTES:
            raise ProtocolError(
                f"a question of {question.common_bytes} bytes: expected at most {MAX_COMMON_BYTES}"
            )
        came = bytearray(question.content)
        while len(came) < question.common_bytes:
            fetch = partial(self._service.content, self._session, question.common, len(came))
            piece = self._again(fetch, until)
            if not piece:
                break
            came += piece
        content = bytes(came)
        if hashlib.sha256(content).digest() != question.common:
            raise ProtocolError("a question has other bytes than its name says")
        return content

    def _upload(self, number: int, content: bytes, until: float) -> None:
        digest, received = hashlib.sha256(content).digest(), 0
        while True:
            piece = content[received : received + self._piece]
            send = partial(self._service.upload, self._session, number, received, len(content), digest, piece)
            started = time.monotonic()
            came = self._again(send, until)
            self._adapt(len(piece), time.monotonic() - started)
            self.bytes_up += len(piece)
            if came.accepted:
                return
            if came.reason:
                return  # the stage is over: the next call says what follows
            self._sleep(came.retry_after_seconds)
            received = min(came.received, len(content))
            if received == len(content):  # all of it came, and it did not count: begin anew
                received = 0

    def _adapt(self, size: int, seconds: float) -> None:
        """The size of the next piece, so that one takes a few seconds at most."""
        wanted = size * PIECE_SECONDS / max(seconds, 1e-3)
        self._piece = int(min(max(wanted, LEAST_PIECE), LARGEST_PIECE))

    # Calls ---------------------------------------------------------------------------------------------

    def _again(self, call: Callable[[], T], until: float) -> T:
        """A call that is made again while the network is away; the same bytes each time."""
        pause, last = RETRY_SECONDS
        while True:
            self._expect_time_before(until)
            try:
                return call()
            except ServiceError as error:
                log.info("a call failed and is made again: %s", error)
                self._piece = max(self._piece // 2, LEAST_PIECE)
            self._sleep(random.uniform(0.5, 1.5) * pause)
            pause = min(2 * pause, last)

    def _expect_time_before(self, until: float) -> None:
        if self._stopping.is_set():
            raise Interrupted
        if time.monotonic() >= self._deadline:
            raise Over("deadline")
        if time.monotonic() >= until:
            raise Over("unreachable")

    def _sleep(self, seconds: float) -> None:
        left = self._deadline - time.monotonic()
        if self._stopping.wait(max(min(seconds, left), 0.0)):
            raise Interrupted
