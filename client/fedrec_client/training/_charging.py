"""The charge of a session: asked for where the user's data are, made where the book is, before anything leaves.

The process that holds the node asks over a socket pair that it alone has, and waits; the app's process writes the
charge to the store, synced, and answers. Without the answer nothing is given to the processes that have the
connection. So a session that was not charged has released nothing, whoever was killed at which moment, and one that
was charged may have.

A *release* is an answer that may tell something of the user or opens what does: a share, a vector, everything after
them; and any answer, a refusal as well, to a question for which the node reads the user's data. Before it there
are only answers that are the same for every history: `hello`, `persist`, public keys (`advertise`), and refusals of
stages that know no data. Out of scope: how much is charged (`session`), what an answer holds (`node`).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from fedrec.core.errors import FedrecError, PrivacyRefused

#: Kinds of questions whose answers are the same whatever the user's history.
DATALESS = frozenset({"hello", "persist", "advertise"})
#: Kinds for which the node reads the user's data before it answers or refuses.
READING = frozenset({"train", "evaluate"})
_ASK, _PAID = b"?", b"!"
#: Charges a session; returns when the charge is durable.
Charge = Callable[[], None]


class NotCharged(Exception):  # noqa: N818 - it names what happened
    """The app's process did not charge the session: nothing may leave any more."""


def is_release(kind: str, *, refused: bool) -> bool:
    """Whether an answer to a question of this kind must be paid for before it leaves."""
    return kind in READING or (not refused and kind not in DATALESS)


def no_charge() -> None:
    """Of a session that was given nothing to charge with.

    Raises:
        PrivacyRefused: always: such a session releases nothing.
    """
    raise PrivacyRefused("nothing left, because this session cannot be charged: take part through a Client")


class AskedCharge:
    """In the node's process: asks for the charge once, and lets nothing pass without it.

    Args:
        line: one end of a socket pair; the app's process has the other.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line, self._paid = line, False

    def __call__(self) -> None:
        """Return when the session is charged.

        Raises:
            NotCharged: it will not be.
        """
        if self._paid:
            return
        try:
            self._line.sendall(_ASK)
            answer = self._line.recv(1)
        except OSError as error:
            raise NotCharged from error
        if answer != _PAID:
            raise NotCharged
        self._paid = True


class Till:
    """In the app's process: waits for the question, charges, answers.

    Args:
        line: the other end.
        charge: makes the charge durable, or raises FedrecError.
    """

    def __init__(self, line: socket.socket, charge: Charge) -> None:
        self._line, self._charge, self._open = line, charge, True

    def serve(self, seconds: float) -> str:
        """Wait for at most so long, charge where that is asked for; why the session must end, or nothing."""
        ready, _, _ = select.select([self._line] if self._open else [], [], [], seconds)
        if not ready:
            return ""
        try:
            self._open = self._line.recv(1) == _ASK
            if not self._open:  # the node's process is gone, which is noticed elsewhere
                return ""
            self._charge()
            self._line.sendall(_PAID)
        except FedrecError as error:
            return str(error)
        except OSError:
            self._open = False
        return ""
