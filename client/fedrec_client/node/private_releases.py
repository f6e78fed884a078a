"""What leaves a node in a private run is charged first, and sent again word for word when it is asked for again.

The order is: the reply is staged on disk, its digest is charged in the ledger, then it leaves. A node that is
killed in between either has charged and sends the very bytes it staged, or has charged nothing and released nothing.
Without a folder (a simulation in memory with seeded noise) there is no ledger, and no guarantee either.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load, save

from fedrec.core.errors import PrivacyRefused
from fedrec.core.messages import Reply, Request
from fedrec.core.stage import announced_in
from fedrec.privacy.ledger import Account, Ledger, Limit
from fedrec.privacy.outbox import Outbox
from fedrec.privacy.terms import PrivacyTerms


class Releases(Protocol):
    """The door through which a node's contributions leave."""

    #: Personal state must be on the disk before a reply leaves, whatever the request says.
    persists: bool

    def earlier(self, request: Request) -> Reply | None:
        """The reply that was already let out for this round, or None."""
        ...

    def release(self, request: Request, reply: Reply) -> Reply:
        """Book a reply; it may be sent once this returns."""
        ...


class Unrecorded:
    """Of a run without a plan: nothing is charged, and a reply is made again when it is asked for again."""

    persists = False

    def earlier(self, request: Request) -> Reply | None:
        """None."""
        return None

    def release(self, request: Request, reply: Reply) -> Reply:
        """The reply itself."""
        return reply


class PrivateReleases:
    """Charges every round by itself, on disk.

    Args:
        terms: of the run.
        folder: the node's own, or None.
        subject: who is charged.
    """

    persists = True

    def __init__(self, terms: PrivacyTerms, folder: Path | None, subject: str) -> None:
        if folder is None and terms.plan.noise_seed is None:
            raise PrivacyRefused(
                "a node without a folder has no ledger: give it one, or set privacy.noise_seed (not private)"
            )
        self._terms = terms
        self._account = Account(subject, terms.dataset)
        self._folder = folder

    def earlier(self, request: Request) -> Reply | None:
        """The reply that was already charged for this round, or None.

        Raises:
            PrivacyRefused: the round was answered for another model; answering twice would cost twice.
        """
        if self._folder is None:
            return None
        with self._ledger() as ledger:
            digest = ledger.charged(self._account, self._terms.run).get(request.round)
        if digest is None:
            return None
        payload = self._outbox().get(self._terms.run, request.round, digest)
        if payload is None:
            raise PrivacyRefused(
                f"round {request.round} was charged and sent, and its bytes are not kept any more: start a new run"
            )
        asked, reply = _unpack(payload, request)
        if asked != _digest(request):
            raise PrivacyRefused(
                f"round {request.round} was already answered for another model: a second answer is refused"
            )
        return reply

    def release(self, request: Request, reply: Reply) -> Reply:
        """Charge a reply; it may be sent once this returns.

        Raises:
            BudgetExhausted: the account does not hold enough; nothing may be sent.
            PrivacyRefused: these users took part in a round that is too near, for a plan of rounds apart.
        """
        if self._folder is None:
            return reply
        self._expect_apart(request.round)
        digest = self._outbox().stage(self._terms.run, request.round, _pack(request, reply))
        with self._ledger() as ledger:
            ledger.reserve(self._account, self._terms.run, self._terms.plan)
            ledger.charge(self._account, self._terms.run, request.round, digest)
        return reply

    def _expect_apart(self, round_: int) -> None:
        separation = self._terms.plan.separation
        if separation == 1:
            return
        with self._ledger() as ledger:
            charged = ledger.charged(self._account, self._terms.run)
        near = sorted(other for other in charged if 0 < abs(round_ - other) < separation)
        if near:
            raise PrivacyRefused(
                f"round {round_}: the users here took part in round {near[-1]}, and the plan keeps their rounds "
                f"{separation} apart; nothing was released"
            )

    def _ledger(self) -> Ledger:
        assert self._folder is not None
        limit = Limit(self._terms.limit_epsilon, self._terms.plan.delta)
        # Nodes of one machine share the folder, not the file: each has the book of its own users.
        folder = self._folder / "ledger"
        if self._terms.ledger is not None:
            name = hashlib.sha256(self._account.subject.encode()).hexdigest()[:16]
            folder = self._terms.ledger / name
        return Ledger.open(folder, limit)

    def _outbox(self) -> Outbox:
        assert self._folder is not None
        return Outbox(self._folder / "outbox")


class PaidReleases:
    """Of a node whose whole plan was charged before it began, and which ends with its process.

    Nothing here needs a disk: a process that is killed is never started again under the same identity, so that
    no one can ask for a round a second time. Out of scope: the charge itself, which is the caller's to prove.
    """

    persists = True

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._made: dict[int, tuple[str, Reply]] = {}

    def earlier(self, request: Request) -> Reply | None:
        """The reply that was made for this round, or None.

        Raises:
            PrivacyRefused: the round was answered for another model; answering twice would cost twice.
        """
        asked, reply = self._made.get(request.round, ("", None))
        if reply is not None and asked != _digest(request):
            raise PrivacyRefused(
                f"round {request.round} was already answered for another model: a second answer is refused"
            )
        return reply

    def release(self, request: Request, reply: Reply) -> Reply:
        """Keep a reply, so that asking again gives the same.

        Raises:
            PrivacyRefused: the round is none of those that were charged.
        """
        if not 1 <= request.round <= self._rounds:
            raise PrivacyRefused(f"round {request.round} was not charged: the plan has {self._rounds}")
        self._made[request.round] = (_digest(request), reply)
        return reply


def _digest(request: Request) -> str:
    """Fingerprint of what was asked: round, phase, model and terms, but not how it is to be stored."""
    digest = hashlib.sha256(f"{request.kind} {request.round} {request.phase}".encode())
    digest.update(json.dumps(announced_in(request.meta), sort_keys=True).encode())
    for name in sorted(request.arrays):
        values = np.ascontiguousarray(request.arrays[name])
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _pack(request: Request, reply: Reply) -> bytes:
    header: dict[str, Any] = {"asked": _digest(request), "meta": reply.meta}
    head = json.dumps(header, sort_keys=True).encode()
    return len(head).to_bytes(8, "big") + head + save(dict(reply.arrays))


def _unpack(payload: bytes, request: Request) -> tuple[str, Reply]:
    end = 8 + int.from_bytes(payload[:8], "big")
    header = json.loads(payload[8:end])
    arrays = load(payload[end:])
    return header["asked"], Reply(request.kind, request.round, request.phase, arrays, header["meta"])
