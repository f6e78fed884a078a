"""Terms of aggregation for tests, and a cohort whose members take the protocol's steps in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.secagg.client import Client
from fedrec.secagg.context import Context
from fedrec.secagg.messages import Arrays
from fedrec.secagg.roster import Identity, Member, Roster
from fedrec.secagg.server import Server
from fedrec.secagg.terms import PlainTerms, SecaggTerms
from fedrec_server.rounds.replies import Host

PLAIN = PlainTerms(insecure=True)
STAGES = ("advertise", "share", "mask", "confirm", "unmask")
#: Changes a device's reply: (stage, place, reply) -> reply, or None for none.
Meddle = Callable[[str, int, Arrays], Arrays | None]


def enrolled(users: Sequence[int], **fields: Any) -> tuple[SecaggTerms, list[Identity]]:
    """Terms for devices that host so many users each, and their identities."""
    identities = [Identity.create() for _ in users]
    members = tuple(
        Member(name=str(k), key=identity.public.hex(), users=count, vouched=count > 1)
        for k, (identity, count) in enumerate(zip(identities, users, strict=True))
    )
    fields = {"run": "run", "range_users": max(sum(users), 1), "clip_norm": 1.0} | fields
    return SecaggTerms(roster=Roster(members=members), **fields), identities


def vectors(n: int, m: int, bits: int = 32, seed: int = 0) -> NDArray[Any]:
    """[n, m] random residues."""
    words = np.random.default_rng(seed).integers(0, 2**bits, size=(n, m), dtype=np.uint64)
    return words.astype(f"<u{bits // 8}")


@dataclass
class Cohort:
    """n devices and a server in one attempt.

    Attributes:
        terms, identities: of everyone.
        vectors: [n, m].
        context: of the attempt.
        refused: why devices refused, by place.
        sent: every reply, by stage and place.
    """

    terms: SecaggTerms
    identities: list[Identity]
    vectors: NDArray[Any]
    context: Context
    refused: dict[int, AggregationRefused] = field(default_factory=dict)
    sent: dict[str, dict[int, Arrays]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clients = {
            place: Client.begin(self.terms, identity, self.context)
            for place, identity in enumerate(self.identities)
        }
        self.server = Server(self.terms, self.context)

    @classmethod
    def of(cls, n: int, m: int = 20, *, attempt: int = 1, seed: int = 0, **fields: Any) -> Cohort:
        """n devices with one user each."""
        terms, identities = enrolled([1] * n, **fields)
        return cls(terms, identities, vectors(n, m, terms.bits, seed), context_of(terms, m, attempt=attempt))

    def answer(self, stage: str, place: int, request: Arrays) -> Arrays | None:
        """A device's reply; None, with the reason kept, where it refuses."""
        client = self.clients[place]
        try:
            if stage == "advertise":
                return client.advertise()
            if stage == "mask":
                return client.mask(request, self.vectors[place])
            reply: Arrays = getattr(client, stage)(request)
        except AggregationRefused as error:
            self.refused[place] = error
            return None
        return reply

    def replies(
        self, stage: str, requests: Mapping[int, Arrays], gone: Collection[int], meddle: Meddle | None
    ) -> dict[int, Arrays]:
        """What comes back from those who are there."""
        out = {}
        for place, request in requests.items():
            reply = None if place in gone else self.answer(stage, place, request)
            if reply is not None and meddle is not None:
                reply = meddle(stage, place, reply)
            if reply is not None:
                out[place] = reply
        self.sent[stage] = out
        return out

    def run(
        self, drops: Mapping[str, Collection[int]] | None = None, meddle: Meddle | None = None
    ) -> NDArray[Any]:
        """The sum; `drops` names who does not answer at each stage, and they stay away afterwards."""
        server, gone = self.server, set[int]()
        requests: Mapping[int, Arrays] = {place: {} for place in self.clients}
        steps = (server.adverts, server.shares, server.masked, server.signatures, server.unmask)
        result: Any = None
        for stage, step in zip(STAGES, steps, strict=True):
            gone |= set((drops or {}).get(stage, ()))
            result = step(self.replies(stage, requests, gone, meddle))
            requests = result if isinstance(result, dict) else {}
        return np.asarray(result)

    def expected(self) -> NDArray[Any]:
        """The sum over the survivors, computed in the clear."""
        rows = self.vectors[list(self.server.survivors)]
        return rows.sum(axis=0, dtype=np.uint64).astype(self.vectors.dtype)


def context_of(terms: SecaggTerms, m: int, **fields: Any) -> Context:
    """The context of an attempt under some terms."""
    plain = {"kind": "train", "phase": "refit", "round": 1, "attempt": 1, "model": "00" * 32} | fields
    return Context(terms=terms.digest.hex(), length=m, **plain)


@dataclass
class Here:
    """Nodes that are there, as a test says.

    Attributes:
        hosts: by node.
    """

    hosts: Mapping[str, Host]

    def meet(self) -> dict[str, Host]:
        return dict(self.hosts)

    def present(self) -> list[str]:
        return sorted(self.hosts)
