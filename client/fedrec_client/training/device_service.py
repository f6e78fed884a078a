"""What the SDK asks of a device service, whatever carries it: gRPC, or a fake in the same process.

Nothing here is trusted: the task is signed, rosters are, and what is sent is masked. Every call may raise
ServiceError (ServerBusy with the time to come back). Out of scope: what is answered (`cohort_session`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Offer:
    """What there is for this device.

    Attributes:
        retry_after_seconds: check in again after between these many seconds.
        job: 32 hexadecimal digits; empty: none.
        joinable: a cohort forms now.
    """

    retry_after_seconds: tuple[float, float]
    job: str = ""
    joinable: bool = False


@dataclass(frozen=True)
class Entrance:
    """How this device asks to join.

    Attributes:
        job: id.
        identity: [32] Ed25519 public key of this cohort alone.
        proof: [64] the identity's signature over `fedrec.wire.device_messages.join_statement`.
        admission: name of the service's verifier; empty: none.
        evidence: for it, e.g. a token of the app's own login.
        last_round: in which this device took part in the job; 0: none.
    """

    job: str
    identity: bytes
    proof: bytes
    admission: str = ""
    evidence: bytes = b""
    last_round: int = 0


@dataclass(frozen=True)
class Joined:
    """The answer.

    Attributes:
        session: secret, names this device in its cohort; empty: not joined.
        retry_after_seconds: when to try again.
    """

    session: bytes
    retry_after_seconds: float = 0.0


@dataclass(frozen=True)
class StageAnswer:
    """What the service has for a device in a cohort.

    Attributes:
        state: "wait": call again; "question": answer it; "over".
        retry_after_seconds: "wait": before the next call; "over": when to check in again.
        number: of the question, from 1.
        common: SHA-256 of the part that all devices are sent; empty: none.
        common_bytes: its size.
        content: that part itself, where it is short; empty: it is to be fetched.
        own: this device's part.
        deadline_seconds: for the answer, from now.
        reason: "over": a code.
    """

    state: Literal["wait", "question", "over"]
    retry_after_seconds: float = 0.0
    number: int = 0
    common: bytes = b""
    common_bytes: int = 0
    content: bytes = b""
    own: bytes = b""
    deadline_seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Uploaded:
    """How much of an answer has come.

    Attributes:
        received: bytes; the next piece begins here.
        accepted: the whole answer is kept and counts.
        retry_after_seconds: before the next piece.
        reason: a code, when it is not taken any more.
    """

    received: int
    accepted: bool = False
    retry_after_seconds: float = 0.0
    reason: str = ""


class DeviceService(Protocol):
    """One connection; safe for several threads."""

    def check_in(self, population: str, client_version: str, model_version: int) -> Offer:
        """What there is for this device."""

    def task(self, job: str) -> bytes:
        """The signed task of a job."""

    def join(self, entrance: Entrance) -> Joined:
        """Take part in the job's next cohort."""

    def stage(
        self, session: bytes, *, answered: int = 0, answer: bytes = b"", refused: bool = False, known: int = 0
    ) -> StageAnswer:
        """Send the answer to a question and get the next one; the call may be held for a while.

        Args:
            session: of `Joined`.
            answered: number of the question that `answer` is for; 0: none.
            answer: short answer, or a code of refusal.
            refused: the answer is such a code.
            known: number of the last question that came.
        """

    def upload(
        self, session: bytes, number: int, offset: int, total: int, sha256: bytes, content: bytes
    ) -> Uploaded:
        """Send a piece of a long answer; no content asks how much has come."""

    def content(self, session: bytes, sha256: bytes, offset: int) -> bytes:
        """A piece of the common part of a question, from `offset` on."""

    def leave(self, session: bytes) -> None:
        """This device has left its cohort; tried once."""

    def close(self) -> None:
        """Let the connection go; calls that wait end with ServiceError."""
