"""How the coordinator gets at what nodes have to say: one reply each, or one sum of all of them.

A collector asks nodes one question and gives back what can be read of the answers. Under secure aggregation that is a
single reply, the sum over those who survived, as if one node hosted all of their users. Out of scope: the protocol of
secure aggregation (`secure_collector`), what is asked and what is done with it (`coordinator`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.messages import Exchange, Reply, Request, Scalar
from fedrec.secagg.sums import SumFormat, label_of
from fedrec.secagg.terms import CohortTerms, SecaggTerms, rules_of
from fedrec_server.rounds.replies import Host, sift

#: How one reply is read: (reply, users behind it, whether it is a sum over several nodes) -> anything.
Reader = Callable[[Reply, int, bool], Any]


@dataclass(frozen=True)
class Question:
    """What is asked of all nodes.

    Attributes:
        request: as a node would get it in the clear.
        read: reads one answer, or raises ProtocolError.
        arrays: an example of an answer's arrays.
        names: of an answer's scalars.
        release: under a privacy plan, makes what may be seen of a sum that was read, its noise included; a collector
            that writes sums to the disk writes what this returns. None: nothing of the sum is to be released.
    """

    request: Request
    read: Reader
    arrays: Mapping[str, NDArray[Any]]
    names: tuple[str, ...]
    release: Callable[[Any], NDArray[Any]] | None = None


@dataclass(frozen=True)
class Answers:
    """What came.

    Attributes:
        values: of `Question.read`, one per reply or one for the sum.
        nodes: how many nodes are in them.
        failures: why the others are not, by node.
        facts: for the round's record.
        released: what `Question.release` made, where the collector had to call it; `values` is empty then.
    """

    values: list[Any]
    nodes: int
    failures: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    released: NDArray[Any] | None = None


class Members(Protocol):
    """Nodes that stay for a whole run (`_membership.Attendance`)."""

    def meet(self) -> dict[str, Host]:
        """Those that are there; waits for as many as a round needs; raises FederationError when too few come."""

    def present(self) -> list[str]:
        """Those that are there, however few."""


class Collector(Protocol):
    """See the module's text."""

    #: Whether nodes answer a question once and for all, since they give shares of their secrets away for it.
    asks_once: ClassVar[bool]
    #: Whether the coordinator sees sums alone.
    hides_replies: ClassVar[bool]

    def ask(self, question: Question) -> Answers:
        """Ask the nodes that are there.

        Raises:
            FederationError: too few are.
            AggregationAborted: there is no sum.
            PrivacyRefused: `Question.release` refused the sum.
        """

    def present(self) -> list[str]:
        """Nodes that stay and can be asked now, however few."""

    def forget(self, but: Collection[str] = ()) -> None:
        """Remove what is kept of sums from the disk, apart from those with these labels."""


@dataclass(frozen=True)
class OpenCollector:
    """Every node's reply is seen here, in the clear or after opening its seal."""

    asks_once: ClassVar[bool] = False
    hides_replies: ClassVar[bool] = False

    exchange: Exchange
    members: Members
    deadline_seconds: float
    unwrap: Callable[[Reply, str], Reply] = lambda reply, node: reply

    def ask(self, question: Question) -> Answers:
        """See `Collector`."""
        hosts = self.members.meet()
        requests = dict.fromkeys(hosts, question.request)
        answers = self.exchange.exchange(requests, self.deadline_seconds)
        good, bad = sift(
            requests,
            answers,
            lambda node, reply: question.read(self.unwrap(reply, hosts[node].name), hosts[node].users, False),
        )
        return Answers(list(good.values()), len(good), bad)

    def present(self) -> list[str]:
        """See `Collector`."""
        return self.members.present()

    def forget(self, but: Collection[str] = ()) -> None:
        """See `Collector`; nothing is kept."""


@dataclass(frozen=True)
class IntegerCollector:
    """The sum of secure aggregation without its cryptography, for simulations in one process."""

    asks_once: ClassVar[bool] = True
    hides_replies: ClassVar[bool] = True

    exchange: Exchange
    members: Members
    deadline_seconds: float
    terms: SecaggTerms | CohortTerms

    def ask(self, question: Question) -> Answers:
        """See `Collector`."""
        request, hosts = question.request, self.members.meet()
        form = format_of(self.terms, question)
        requests = dict.fromkeys(hosts, request)
        total = np.zeros(form.encoding.length, dtype=form.encoding.dtype)
        good, bad = sift(requests, self.exchange.exchange(requests, self.deadline_seconds), lambda node, r: r)
        for reply in good.values():
            np.add(total, reply.arrays["integers"], out=total)
        users = sum(hosts[node].users for node in good)
        return Answers([read_sum(question, form, total, users)] if good else [], len(good), bad)

    def present(self) -> list[str]:
        """See `Collector`."""
        return self.members.present()

    def forget(self, but: Collection[str] = ()) -> None:
        """See `Collector`; nothing is kept."""


def format_of(terms: SecaggTerms | CohortTerms, question: Question) -> SumFormat:
    """The format of a question's answers."""
    request = question.request
    label = label_of(request.kind, request.phase, request.round)
    return SumFormat.of(rules_of(terms), label, question.arrays, question.names)


def read_sum(question: Question, form: SumFormat, total: NDArray[Any], users: int) -> Any:
    """What `Question.read` makes of a sum of residues over nodes that host `users` users."""
    arrays, numbers = form.decode(total)
    request = question.request
    meta: dict[str, Scalar] = {
        name: int(value) if value == int(value) else value for name, value in numbers.items()
    }
    return question.read(Reply(request.kind, request.round, request.phase, arrays, meta), users, True)
