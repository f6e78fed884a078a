"""Secure aggregation over an exchange among the nodes of a fixed roster: five questions to them for one sum.

    attempt     a number that rises over the whole run, on disk before it is used; nodes join none twice
    give-away   noted on disk before nodes are asked for shares, because they will not be asked twice for this sum
    sum         on disk as soon as it is known, under a privacy plan with its noise: a coordinator killed after that
                resumes with it (`kept_sum`)

A coordinator killed between the last two has lost the sum, and says so (`AggregationAborted`, revealed). Out of
scope: the protocol (`fedrec.secagg.server`), what is asked and done with the answer (`coordinator`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from fedrec.core.errors import AggregationAborted, AggregationRefused
from fedrec.core.messages import Exchange, Request
from fedrec.secagg.schedule import Group
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import SecaggTerms
from fedrec_server.rounds._attempt import (
    Attempt,
    Seconds,
    Steps,
    Total,
    kept_answers,
    least_of,
    run_attempt,
)
from fedrec_server.rounds._collectors import Answers, Members, Question, format_of
from fedrec_server.rounds._protocol_log import ProtocolLog
from fedrec_server.rounds.kept_sum import KeptSum
from fedrec_server.rounds.replies import Host


class SecureCollector:
    """See the module's text.

    Args:
        exchange: to the nodes.
        members: who is there.
        terms: of the run.
        folder: the coordinator's.
        seconds: of the stages.
        min_nodes, min_reply_fraction: with fewer nodes, of those asked, there is no sum.
        private: the run has a privacy plan: only what a question's `release` made is written to the disk.
    """

    asks_once: ClassVar[bool] = True
    hides_replies: ClassVar[bool] = True

    def __init__(
        self,
        exchange: Exchange,
        members: Members,
        terms: SecaggTerms,
        folder: Path,
        *,
        seconds: Seconds,
        min_nodes: int,
        min_reply_fraction: float,
        private: bool,
    ) -> None:
        self._exchange, self._members = exchange, members
        self._terms = terms
        self._log = ProtocolLog(folder)
        self._kept = KeptSum(folder)
        self._private = private
        self._seconds = seconds
        self._min_nodes = min_nodes
        self._min_reply_fraction = min_reply_fraction

    def ask(self, question: Question) -> Answers:
        """The sum over the nodes that survived, read as one reply.

        Raises:
            FederationError: too few nodes are there.
            AggregationAborted: there is no sum.
            PrivacyRefused: `Question.release` refused the sum, which is gone then.
        """
        request, form = question.request, format_of(self._terms, question)
        label = label_of(request.kind, request.phase, request.round)

        def attempt() -> Total:
            if self._log.given_away(label):
                raise AggregationAborted(
                    f"sum {label} was lost when the coordinator stopped, after nodes had given their shares away",
                    revealed=True,
                )
            return self._attempt(request, label, form.encoding.length, self._members.meet())

        return kept_answers(self._kept, question, form, attempt, private=self._private)

    def present(self) -> list[str]:
        """See `Collector`."""
        return self._members.present()

    def forget(self, but: Collection[str] = ()) -> None:
        """See `Collector`; what an earlier version kept without noise under a plan is removed in any case."""
        self._kept.forget(but, noised_only=self._private)

    def _attempt(self, request: Request, label: str, length: int, hosts: Mapping[str, Host]) -> Total:
        by_place = {host.place: node for node, host in hosts.items() if host.place is not None}
        group = self._log.group() if request.kind in self._terms.schedule.guarded else None
        if group is not None and group.joined:
            by_place = {place: node for place, node in by_place.items() if place in group.members}
        attempt = Attempt(
            self._terms,
            request,
            self._log.next_attempt(),
            length,
            by_place,
            {place: hosts[node].users for place, node in by_place.items()},
            self._seconds,
            least_of(self._min_nodes, self._min_reply_fraction, len(hosts)),
        )
        total, facts = run_attempt(self._exchange, attempt, _Kept(self._log, label, group))
        left_out = dict.fromkeys(set(hosts).difference(by_place.values()), "left out")
        return total, facts | {"failures": left_out | facts["failures"]}


class _Kept(Steps):
    """Notes what must not be forgotten, before nodes know it."""

    def __init__(self, log: ProtocolLog, label: str, group: Group | None) -> None:
        self._log, self._label, self._group = log, label, group

    def joined(self, sharers: tuple[int, ...]) -> Group | None:
        """The group of a guarded sum after these shared."""
        if self._group is not None:
            self._group = _joined(self._group, sharers)
            self._log.keep_group(self._group)
        return self._group

    def opening(self, survivors: tuple[int, ...]) -> None:
        """Shares are asked for from now on."""
        if self._group is not None:
            self._log.keep_group(replace(self._group, last=survivors))
        self._log.give_away(self._label)


def _joined(group: Group, sharers: tuple[int, ...]) -> Group:
    try:
        return group.check_sharers(sharers)
    except AggregationRefused as error:
        raise AggregationAborted(f"{error}; wait until they are back") from error
