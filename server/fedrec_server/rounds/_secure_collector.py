"""Secure aggregation over an exchange: five questions to the nodes for one sum.

    attempt     a number that rises over the whole run, on disk before it is used; nodes join none twice
    give-away   noted on disk before nodes are asked for shares, because they will not be asked twice for this sum
    sum         on disk as soon as it is known, under a privacy plan with its noise: a coordinator killed after that
                goes on with it (`kept_sum`)

A coordinator killed between the last two has lost the sum, and says so (`AggregationAborted`, revealed). Out of
scope: the protocol (`fedrec.secagg.server`), what is asked and done with the answer (`coordinator`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationAborted, AggregationRefused, ProtocolError
from fedrec.core.messages import Exchange, Failure, Kind, Reply, Request
from fedrec.privacy.durable import durable_write
from fedrec.secagg.context import Context
from fedrec.secagg.digest import question_digest
from fedrec.secagg.messages import Arrays
from fedrec.secagg.schedule import Group
from fedrec.secagg.server import Server
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import SecaggTerms
from fedrec_server.rounds._collectors import Answers, Question, format_of, read_sum
from fedrec_server.rounds.kept_sum import KeptSum
from fedrec_server.rounds.replies import Host, check_envelope

PREFIX = "secagg/"


class SecureCollector:
    """See the module's text.

    Args:
        exchange: to the nodes.
        terms: of the run.
        folder: the coordinator's.
        deadline_seconds: for the stage in which nodes compute.
        stage_seconds: for each of the others.
        min_nodes, min_reply_fraction: with fewer nodes, of those asked, there is no sum.
        private: the run has a privacy plan: only what a question's `release` made is written to the disk.
    """

    asks_once: ClassVar[bool] = True

    def __init__(
        self,
        exchange: Exchange,
        terms: SecaggTerms,
        folder: Path,
        *,
        deadline_seconds: float,
        stage_seconds: float,
        min_nodes: int,
        min_reply_fraction: float,
        private: bool,
    ) -> None:
        self._exchange = exchange
        self._terms = terms
        self._diary = Diary(folder)
        self._kept = KeptSum(folder)
        self._private = private
        self._deadline_seconds = deadline_seconds
        self._stage_seconds = stage_seconds
        self._min_nodes = min_nodes
        self._min_reply_fraction = min_reply_fraction

    def ask(self, question: Question, hosts: Mapping[str, Host]) -> Answers:
        """The sum over the nodes that survived, read as one reply.

        Raises:
            AggregationAborted: there is no sum.
            PrivacyRefused: `Question.release` refused the sum, which is gone then.
        """
        request, form = question.request, format_of(self._terms, question)
        label = label_of(request.kind, request.phase, request.round)
        noised = question.release is not None
        kept = self._kept.get(label, noised=noised)
        if kept is None:
            if self._diary.given_away(label):
                raise AggregationAborted(
                    f"sum {label} was lost when the coordinator stopped, after nodes had given their shares away",
                    revealed=True,
                )
            total, facts = self._attempt(request, label, form.encoding.length, hosts)
            if question.release is not None:
                total = question.release(read_sum(question, form, total, facts["users"]))
            if noised or not self._private:
                self._kept.keep(label, total, facts, noised=noised)
        else:
            total, facts = kept
        if noised:
            return Answers([], facts["nodes"], facts["failures"], facts["record"], released=total)
        value = read_sum(question, form, total, facts["users"])
        return Answers([value], facts["nodes"], facts["failures"], facts["record"])

    def forget(self, but: Collection[str] = ()) -> None:
        """See `Collector`; what an earlier version kept without noise under a plan is removed in any case."""
        self._kept.forget(but, noised_only=self._private)

    def _attempt(
        self, request: Request, label: str, length: int, hosts: Mapping[str, Host]
    ) -> tuple[NDArray[np.unsignedinteger], dict[str, Any]]:
        by_place = {host.place: node for node, host in hosts.items() if host.place is not None}
        group = self._diary.group() if request.kind in self._terms.schedule.guarded else None
        if group is not None and group.joined:
            by_place = {place: node for place, node in by_place.items() if place in group.members}
        context = Context(
            terms=self._terms.digest.hex(),
            kind=request.kind,
            phase=request.phase,
            round=request.round,
            attempt=self._diary.next_attempt(),
            model=question_digest(request.arrays, request.meta),
            length=length,
        )
        stages = _Stages(self._exchange, request, context, by_place)
        server = Server(self._terms, context)
        quick, slow = self._stage_seconds, self._deadline_seconds
        adverts = stages.run("advertise", dict.fromkeys(by_place, _NOTHING), quick)
        shares = stages.run("share", server.adverts(adverts), quick)
        asked = server.shares(shares)
        if group is not None:
            group = _joined(group, server.sharers)
            self._diary.keep_group(group)
        masked = stages.run(request.kind, asked, slow)
        signatures = stages.run("confirm", server.masked(masked, group), quick)
        last = server.signatures(signatures)
        least = max(self._min_nodes, math.ceil(self._min_reply_fraction * len(hosts)))
        if len(server.survivors) < least:
            raise AggregationAborted(
                f"{len(server.survivors)} of {len(hosts)} nodes sent a vector, expected at least {least}"
                f" ({'; '.join(sorted(set(stages.failures.values()))[:5])})"
            )
        if group is not None:
            self._diary.keep_group(replace(group, last=server.survivors))
        self._diary.give_away(label)
        total = server.unmask(stages.run("unmask", last, quick))
        survivors = [by_place[place] for place in server.survivors]
        reasons = {by_place[place]: why for place, why in server.refused.items()} | stages.failures
        failures = {node: reasons.get(node, "left out") for node in hosts if node not in survivors}
        return total, {
            "users": sum(hosts[node].users for node in survivors),
            "nodes": len(survivors),
            "failures": failures,
            "record": {"secagg": stages.record() | {"attempt": context.attempt, "nodes": len(survivors)}},
        }


def _joined(group: Group, sharers: tuple[int, ...]) -> Group:
    try:
        return group.check_sharers(sharers)
    except AggregationRefused as error:
        raise AggregationAborted(f"{error}; wait until they are back") from error


_NOTHING: Arrays = {}


class _Stages:
    """The questions of one attempt, and what they cost."""

    def __init__(
        self, exchange: Exchange, request: Request, context: Context, by_place: Mapping[int, str]
    ) -> None:
        self.failures: dict[str, str] = {}
        self._exchange = exchange
        self._request = request
        self._context = context
        self._nodes = dict(by_place)
        self._seconds: dict[str, float] = {}
        self._up = self._down = 0

    def run(self, kind: str, asked: Mapping[int, Arrays], deadline_seconds: float) -> dict[int, Arrays]:
        """Ask each place its question; the arrays of the answers that came and look like answers."""
        started = time.perf_counter()
        requests = {self._nodes[place]: self._make(kind, arrays) for place, arrays in asked.items()}
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
            for name in ("terms", "kind", "model", "length"):
                meta[PREFIX + name] = getattr(context, name)
        return Request(cast(Kind, kind), request.round, request.phase, carried, meta)


def _bytes(message: Request | Reply) -> int:
    """Of the arrays; the few fields beside them are not counted."""
    return sum(values.nbytes for values in message.arrays.values())


_NO_NOTES: dict[str, Any] = {"attempt": 0, "given": [], "group": {"joined": [], "last": None}}


class Diary:
    """What a coordinator must not forget when it is killed; see the module's text."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "secagg.json"

    def next_attempt(self) -> int:
        """A number larger than all before it."""
        notes = self._read()
        attempt = int(notes["attempt"]) + 1
        self._write(notes | {"attempt": attempt})
        return attempt

    def give_away(self, label: str) -> None:
        """Note that shares of this sum are being asked for."""
        notes = self._read()
        self._write(notes | {"given": [*notes["given"], label]})

    def keep_group(self, group: Group) -> None:
        """Note who takes part in guarded sums, before nodes know it."""
        self._write(self._read() | {"group": asdict(group)})

    def group(self) -> Group:
        """Who took part in guarded sums."""
        plain = self._read()["group"]
        return Group(tuple(plain["joined"]), None if plain["last"] is None else tuple(plain["last"]))

    def given_away(self, label: str) -> bool:
        """Whether they were."""
        return label in self._read()["given"]

    def _write(self, notes: dict[str, Any]) -> None:
        durable_write(self._notes, (json.dumps(notes, sort_keys=True) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        return json.loads(self._notes.read_text()) if self._notes.exists() else _NO_NOTES
