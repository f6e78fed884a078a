"""One attempt at one sum: the five stages of secure aggregation over an exchange, for any roster.

Out of scope: the protocol (`fedrec.secagg.server`), who is asked (`_secure_collector`, `_cohort_collector`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationAborted, ProtocolError
from fedrec.core.messages import Exchange, Failure, Kind, Reply, Request, SummingExchange
from fedrec.secagg.context import Context
from fedrec.secagg.digest import question_digest
from fedrec.secagg.messages import Arrays
from fedrec.secagg.schedule import Group
from fedrec.secagg.server import Server
from fedrec.secagg.sums import SumFormat, label_of
from fedrec.secagg.terms import SecaggTerms
from fedrec_server.rounds._collectors import Answers, Question, read_sum
from fedrec_server.rounds.kept_sum import KeptSum
from fedrec_server.rounds.replies import check_envelope

PREFIX = "secagg/"
#: [m] residues, and the facts of the sum: users, nodes, failures, record.
Total = tuple[NDArray[np.unsignedinteger], dict[str, Any]]
_NOTHING: Arrays = {}


@dataclass(frozen=True)
class Seconds:
    """How long stages may take.

    Attributes:
        computing: the one in which nodes compute.
        other: each of the others.
    """

    computing: float
    other: float


@dataclass(frozen=True)
class Attempt:
    """What is attempted.

    Attributes:
        terms: of the run, with the roster of this attempt.
        request: what nodes would be asked in the clear.
        number: of the attempt, larger than all before it.
        length: m, values of the vector.
        by_place: node of each place in the roster.
        users: of each place.
        seconds: of the stages.
        least: with fewer vectors there is no sum.
        announced: arrays that the first request carries beside the protocol's.
    """

    terms: SecaggTerms
    request: Request
    number: int
    length: int
    by_place: Mapping[int, str]
    users: Mapping[int, int]
    seconds: Seconds
    least: int
    announced: Arrays = field(default_factory=dict)


class Steps:
    """What a collector does between the stages; the next one begins when it returns. Here: nothing."""

    def joined(self, sharers: tuple[int, ...]) -> Group | None:
        """Learns who shared, before vectors are asked for; the group of a guarded sum."""
        return None

    def computing(self) -> None:
        """Nodes compute from now on."""

    def opening(self, survivors: tuple[int, ...]) -> None:
        """Learns who survived, before shares are asked for."""


def run_attempt(exchange: Exchange, attempt: Attempt, steps: Steps) -> Total:
    """The sum and its facts.

    Raises:
        AggregationAborted: there is no sum.
    """
    request, by_place, terms = attempt.request, attempt.by_place, attempt.terms
    context = Context(
        terms=terms.digest.hex(),
        kind=request.kind,
        phase=request.phase,
        round=request.round,
        attempt=attempt.number,
        model=question_digest(request.arrays, request.meta),
        length=attempt.length,
    )
    stages, server = Stages(exchange, request, context, by_place, attempt.announced), Server(terms, context)
    quick = attempt.seconds.other
    adverts = stages.run("advertise", dict.fromkeys(by_place, _NOTHING), quick)
    shares = stages.run("share", server.adverts(adverts), quick)
    asked = server.shares(shares)
    group = steps.joined(server.sharers)
    steps.computing()
    listed = _vectors(stages, server, asked, attempt, group)
    last = server.signatures(stages.run("confirm", listed, quick))
    if len(server.survivors) < attempt.least:
        raise AggregationAborted(
            f"{len(server.survivors)} of {len(by_place)} nodes sent a vector, expected at least {attempt.least}"
            f" ({'; '.join(sorted(set(stages.failures.values()))[:5])})"
        )
    steps.opening(server.survivors)
    total = server.unmask(stages.run("unmask", last, quick))
    survivors = [by_place[place] for place in server.survivors]
    reasons = {by_place[place]: why for place, why in server.refused.items()} | stages.failures
    left = set(by_place.values()).difference(survivors)
    return total, {
        "users": sum(attempt.users[place] for place in server.survivors),
        "nodes": len(survivors),
        "failures": {node: reasons.get(node, "left out") for node in sorted(left)},
        "record": {"secagg": stages.record() | {"attempt": context.attempt, "nodes": len(survivors)}},
    }


def kept_answers(
    kept: KeptSum, question: Question, form: SumFormat, attempt: Callable[[], Total], *, private: bool
) -> Answers:
    """The sum that is kept of an earlier start, or a new one, which is kept before it is read.

    Args:
        kept: of the run.
        question: that is asked.
        form: of its answers.
        attempt: makes the sum.
        private: the run has a privacy plan: only what the question's `release` made is written to the disk.

    Raises:
        AggregationAborted: there is no sum.
        PrivacyRefused: `Question.release` refused the sum, which is gone then.
    """
    request, noised = question.request, question.release is not None
    label = label_of(request.kind, request.phase, request.round)
    found = kept.get(label, noised=noised)
    if found is None:
        total, facts = attempt()
        if question.release is not None:
            total = question.release(read_sum(question, form, total, facts["users"]))
        if noised or not private:
            kept.keep(label, total, facts, noised=noised)
    else:
        total, facts = found
    nodes, failures, record = facts["nodes"], facts["failures"], facts["record"]
    if noised:
        return Answers([], nodes, failures, record, released=total)
    return Answers([read_sum(question, form, total, facts["users"])], nodes, failures, record)


def least_of(min_nodes: int, min_reply_fraction: float, asked: int) -> int:
    """With fewer vectors there is no sum."""
    return max(min_nodes, math.ceil(min_reply_fraction * asked))


def _vectors(
    stages: Stages, server: Server, asked: Mapping[int, Arrays], attempt: Attempt, group: Group | None
) -> dict[int, Arrays]:
    """The confirm requests; who is in a guarded sum is chosen among single vectors."""
    if group is None and stages.sums:
        like = np.zeros(attempt.length, dtype=f"<u{attempt.terms.bits // 8}")
        return server.summed(*stages.run_summed(asked, attempt.seconds.computing, like))
    return server.masked(stages.run(attempt.request.kind, asked, attempt.seconds.computing), group)


class Stages:
    """The questions of one attempt, and what they cost."""

    def __init__(
        self,
        exchange: Exchange,
        request: Request,
        context: Context,
        by_place: Mapping[int, str],
        announced: Arrays,
    ) -> None:
        self.failures: dict[str, str] = {}
        self._announced = announced
        self._exchange = exchange
        self._request = request
        self._context = context
        self._nodes = dict(by_place)
        self._seconds: dict[str, float] = {}
        self._up = self._down = 0

    def run(self, kind: str, asked: Mapping[int, Arrays], deadline_seconds: float) -> dict[int, Arrays]:
        """Ask each place its question; the arrays of the answers that came and look like answers."""
        started = time.perf_counter()
        requests = self._requests(kind, asked)
        answers = self._exchange.exchange(requests, deadline_seconds)
        came: dict[int, Arrays] = {}
        for place in sorted(asked):
            node = self._nodes[place]
            reply = answers.get(node, Failure("no answer"))
            try:
                if isinstance(reply, Failure):
                    raise ProtocolError(reply.reason)
                check_envelope(requests[node], reply)
                came[place] = dict(reply.arrays)
                self._up += _bytes(reply)
            except ProtocolError as error:
                self.failures[node] = f"{kind}: {error}"
        self._down += sum(_bytes(each) for each in requests.values())
        self._seconds[kind] = time.perf_counter() - started
        return came

    def run_summed(
        self, asked: Mapping[int, Arrays], deadline_seconds: float, like: NDArray[Any]
    ) -> tuple[NDArray[Any], list[int]]:
        """Ask for vectors that the exchange adds up: their sum, and whose are in it."""
        exchange = self._exchange
        assert isinstance(exchange, SummingExchange)
        started, kind = time.perf_counter(), self._request.kind
        requests = self._requests(kind, asked)
        summed = exchange.exchange_summed(requests, deadline_seconds, like.dtype.name, like.size)
        places = {node: place for place, node in self._nodes.items()}
        self.failures |= {node: f"{kind}: {failure.reason}" for node, failure in summed.failures.items()}
        self._up += like.nbytes * len(summed.nodes)
        self._down += sum(_bytes(each) for each in requests.values())
        self._seconds[kind] = time.perf_counter() - started
        return summed.total, [places[node] for node in summed.nodes]

    @property
    def sums(self) -> bool:
        """Whether the exchange adds vectors up itself."""
        return isinstance(self._exchange, SummingExchange)

    def _requests(self, kind: str, asked: Mapping[int, Arrays]) -> dict[str, Request]:
        return {self._nodes[place]: self._make(kind, arrays) for place, arrays in asked.items()}

    def record(self) -> dict[str, Any]:
        """Seconds of each stage, and mean bytes per node that was asked."""
        nodes = max(len(self._nodes), 1)
        return {
            "seconds": self._seconds,
            "bytes_up_per_node": self._up / nodes,
            "bytes_down_per_node": self._down / nodes,
        }

    def _make(self, kind: str, arrays: Arrays) -> Request:
        context, request = self._context, self._request
        meta: dict[str, Any] = {PREFIX + "attempt": context.attempt}
        carried = {PREFIX + name: values for name, values in arrays.items()}
        if kind == request.kind:
            return Request(
                request.kind, request.round, request.phase, request.arrays | carried, request.meta | meta
            )
        if kind == "advertise":
            carried |= {PREFIX + name: values for name, values in self._announced.items()}
            for name in ("terms", "kind", "model", "length"):
                meta[PREFIX + name] = getattr(context, name)
        return Request(cast(Kind, kind), request.round, request.phase, carried, meta)


def _bytes(message: Request | Reply) -> int:
    """Of the arrays; the few fields beside them are not counted."""
    return sum(values.nbytes for values in message.arrays.values())
