"""Secure aggregation among the devices that are here now: a cohort, and a signed roster, for every attempt.

    attempt   a number that rises over the whole run, on disk before it is used
    sum       on disk as soon as it is known, under a privacy plan with its noise (`kept_sum`)

A sum that is lost after shares were given away, because the coordinator was killed, is asked again of *another*
cohort. That costs the devices of the lost cohort what taking part costs, which they charged themselves, and no
device more than once: identities are fresh for each cohort, and a device takes part in a round of a job once,
whatever the attempt (`fedrec_client.training`). Devices of the two cohorts are different users, so no guarantee
counts the round twice for one of them. Sites, whose identities last, keep their promises and stay out of the second.

Out of scope: forming cohorts (`cohorts`), the protocol (`fedrec.secagg.server`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import ClassVar

from fedrec.core.errors import AggregationAborted, AggregationRefused
from fedrec.core.messages import Exchange, Request
from fedrec.secagg.signed_roster import roster_of, sign_roster
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import CohortTerms
from fedrec_server.rounds._attempt import Attempt, Seconds, Steps, Total, kept_answers, run_attempt
from fedrec_server.rounds._collectors import Answers, Question, format_of
from fedrec_server.rounds._joint_exchange import JointExchange
from fedrec_server.rounds._protocol_log import ProtocolLog
from fedrec_server.rounds.cohorts import Cohort, Cohorts, CohortWanted, Devices, Ending, Joined
from fedrec_server.rounds.kept_sum import KeptSum
from fedrec_server.rounds.replies import Host


class CohortCollector:
    """See the module's text.

    Args:
        exchange: to the sites.
        devices: of the job.
        terms: of the run.
        folder: the coordinator's.
        seconds: of the stages.
        private: the run has a privacy plan: only what a question's `release` made is written to the disk.
        stop: asked while a cohort forms; when true, none is.
    """

    asks_once: ClassVar[bool] = False
    hides_replies: ClassVar[bool] = True

    def __init__(
        self,
        exchange: Exchange,
        devices: Devices,
        terms: CohortTerms,
        folder: Path,
        *,
        seconds: Seconds,
        private: bool,
        stop: Callable[[], bool],
    ) -> None:
        self._devices, self._terms, self._seconds = devices, terms, seconds
        self._exchange: Exchange = (
            JointExchange(exchange, devices.exchange) if devices.sites else devices.exchange
        )
        self._log, self._kept = ProtocolLog(folder), KeptSum(folder)
        self._private, self._stop = private, stop

    def ask(self, question: Question, hosts: Mapping[str, Host]) -> Answers:
        """The sum over the devices of a cohort, and over the sites that are here, read as one reply.

        Raises:
            AggregationAborted: there is no sum; another attempt may have one.
            PrivacyRefused: `Question.release` refused the sum, which is gone then.
        """
        form = format_of(self._terms, question)

        def attempt() -> Total:
            return self._attempt(question.request, form.encoding.length, hosts)

        return kept_answers(self._kept, question, form, attempt, private=self._private)

    def keeps(self, question: Question) -> bool:
        """Whether the sum of a question came before a kill, and is kept."""
        request = question.request
        label = label_of(request.kind, request.phase, request.round)
        return self._kept.get(label, noised=question.release is not None) is not None

    def forget(self, but: Collection[str] = ()) -> None:
        """See `Collector`."""
        self._kept.forget(but, noised_only=self._private)

    def _attempt(self, request: Request, length: int, hosts: Mapping[str, Host]) -> Total:
        cohorts, wanted = self._devices.cohorts, self._wanted(request)
        number = self._log.next_attempt()
        cohort = cohorts.form(wanted, self._stop)
        ending: Ending = "failed"
        try:
            attempt = self._of(request, number, length, cohort, hosts)
            total = run_attempt(self._exchange, attempt, _Overlap(cohorts, self._wanted(request, 1)))
            ending = "done"
            return total
        except AggregationAborted as error:
            ending = "too_few"
            # Asked again of other devices, so that nothing is lost for the run.
            raise AggregationAborted(str(error)) from error
        finally:
            cohorts.close(cohort, "aborted" if self._stop() and ending != "done" else ending)

    def _of(
        self, request: Request, number: int, length: int, cohort: Cohort, hosts: Mapping[str, Host]
    ) -> Attempt:
        """The attempt with its signed roster: sites first, in the order of their names."""
        sites = [
            Joined(node, key, hosts[node].users)
            for node, key in sorted(self._devices.sites.items())
            if node in hosts
        ]
        members = (*sites, *cohort.members)
        try:
            roster = roster_of((each.identity, each.users) for each in members)
            terms = self._terms.of(roster)
        except AggregationRefused as error:
            raise AggregationAborted(str(error)) from error
        label = label_of(request.kind, request.phase, request.round)
        return Attempt(
            terms,
            request,
            number,
            length,
            {place: each.node for place, each in enumerate(members)},
            {place: each.users for place, each in enumerate(members)},
            self._seconds,
            terms.min_nodes,
            sign_roster(self._devices.signer, roster, run=terms.run, label=label, attempt=number),
        )

    def _wanted(self, request: Request, later: int = 0) -> CohortWanted:
        settings = self._devices.settings
        return CohortWanted(
            request.kind,
            request.phase,
            request.round + later,
            settings.target,
            settings.least,
            self._terms.max_nodes,
            settings.wait_seconds,
        )


class _Overlap(Steps):
    """Lets the next cohort form while this one computes and uploads."""

    def __init__(self, cohorts: Cohorts, following: CohortWanted) -> None:
        self._cohorts, self._following = cohorts, following

    def computing(self) -> None:
        """See `Steps`."""
        self._cohorts.prepare(self._following)
