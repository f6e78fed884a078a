"""Secure aggregation among the devices that are here now: a cohort, and a signed roster, for every attempt.

    attempt   a number that rises over the whole run, on disk before it is used
    sum       on disk as soon as it is known, under a privacy plan with its noise (`kept_sum`)

A sum that is lost after shares were given away, because the coordinator was killed, is asked again of *another*
cohort. That costs the devices of the lost cohort what taking part costs, which they charged themselves, and no
device more than once: identities are fresh for each cohort, and a device takes part in a round of a job once,
whatever the attempt (`fedrec_client.training`). Devices of the two cohorts are different users, so no guarantee
counts the round twice for one of them. Sites, whose identities last, keep their promises and stay out of the second;
where there are sites alone the sum is lost, as with a fixed roster: the round counts, and the model stays as it is.

Out of scope: forming cohorts (`cohorts`), the protocol (`fedrec.secagg.server`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from fedrec.core.errors import AggregationAborted, AggregationRefused
from fedrec.core.messages import Exchange, Request
from fedrec.privacy.plan import PrivacyPlan
from fedrec.secagg.signed_roster import roster_of, sign_roster
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import CohortTerms
from fedrec_server.rounds._attempt import Attempt, Seconds, Steps, Total, kept_answers, run_attempt
from fedrec_server.rounds._collectors import Answers, Members, Question, format_of
from fedrec_server.rounds._joint_exchange import JointExchange
from fedrec_server.rounds._protocol_log import ProtocolLog
from fedrec_server.rounds.cohorts import Cohorts, CohortWanted, Devices, Ending, Joined
from fedrec_server.rounds.kept_sum import KeptSum
from fedrec_server.rounds.replies import Host


class CohortCollector:
    """See the module's text.

    Args:
        exchange: to the sites.
        members: the sites that are there.
        devices: of the job.
        terms: of the run.
        folder: the coordinator's.
        seconds: of the stages.
        plan: of the run; only what a question's `release` made is written to the disk where there is one.
        stop: asked while a cohort forms; when true, none is.
    """

    asks_once: ClassVar[bool] = False
    hides_replies: ClassVar[bool] = True

    def __init__(
        self,
        exchange: Exchange,
        members: Members,
        devices: Devices,
        terms: CohortTerms,
        folder: Path,
        *,
        seconds: Seconds,
        plan: PrivacyPlan | None,
        stop: Callable[[], bool],
    ) -> None:
        self._devices, self._terms, self._seconds = devices, terms, seconds
        self._exchange, self._members = exchange, members
        self._log, self._kept = ProtocolLog(folder), KeptSum(folder)
        self._plan, self._stop = plan, stop
        self._sites_alone = devices.settings.target == 0

    def ask(self, question: Question) -> Answers:
        """The sum over the devices of a cohort, and over the sites that are here, read as one reply.

        Raises:
            AggregationAborted: there is no sum; another attempt may have one.
            PrivacyRefused: `Question.release` refused the sum, which is gone then.
        """
        form = format_of(self._terms, question)

        def attempt() -> Total:
            request = question.request
            label = label_of(request.kind, request.phase, request.round)
            if self._sites_alone and self._log.given_away(label):
                raise AggregationAborted(
                    f"sum {label} was lost when the coordinator stopped, after sites had given their shares away",
                    revealed=True,
                )
            return self._attempt(request, form.encoding.length, self._members.meet())

        return kept_answers(self._kept, question, form, attempt, private=self._plan is not None)

    def present(self) -> list[str]:
        """See `Collector`."""
        return self._members.present()

    def keeps(self, question: Question) -> bool:
        """Whether the sum of a question came before a kill, and is kept."""
        request = question.request
        label = label_of(request.kind, request.phase, request.round)
        return self._kept.get(label, noised=question.release is not None) is not None

    def forget(self, but: Collection[str] = ()) -> None:
        """See `Collector`."""
        self._kept.forget(but, noised_only=self._plan is not None)

    def _attempt(self, request: Request, length: int, hosts: Mapping[str, Host]) -> Total:
        cohorts, wanted = self._devices.cohorts, self._wanted(request)
        number = self._log.next_attempt()
        cohort = cohorts.form(wanted, self._stop)
        ending: Ending = "failed"
        try:
            sites = self._sites(request, hosts)
            attempt = self._of(request, number, length, (*sites, *cohort.members))
            overlap = _Overlap(
                cohorts, self._following(request), self._log if self._sites_alone else None, request
            )
            total = run_attempt(self._to([site.node for site in sites]), attempt, overlap)
            ending = "done"
            return total
        except AggregationAborted as error:
            ending = "too_few"
            # Asked again of other devices, where there are any, so that nothing is lost for the run.
            raise AggregationAborted(str(error), revealed=error.revealed and self._sites_alone) from error
        finally:
            cohorts.close(cohort, "aborted" if self._stop() and ending != "done" else ending)

    def _to(self, sites: list[str]) -> Exchange:
        devices = self._devices.exchange
        return JointExchange(self._exchange, devices, sites) if sites else devices

    def _of(self, request: Request, number: int, length: int, members: tuple[Joined, ...]) -> Attempt:
        """The attempt among these, with its signed roster."""
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

    def _sites(self, request: Request, hosts: Mapping[str, Host]) -> list[Joined]:
        """Sites that are here and whose turn it is: their users keep the distance that devices keep."""
        apart = 1 if self._plan is None else self._plan.separation
        here = {host.name: node for node, host in hosts.items()}
        return [
            replace(site, node=here[site.node])
            for k, site in enumerate(self._devices.sites)
            if site.node in here and k % apart == (request.round - 1) % apart
        ]

    def _wanted(self, request: Request) -> CohortWanted:
        settings, most = self._devices.settings, self._terms.max_nodes
        return CohortWanted(
            request.kind,
            request.phase,
            request.round,
            settings.target,
            settings.least,
            most - len(self._devices.sites),
            settings.wait_seconds,
        )

    def _following(self, request: Request) -> CohortWanted | None:
        """What the next round wants; None after the last one, and after an evaluation."""
        if request.kind != "train" or request.round >= self._terms.rules.schedule.refit_rounds:
            return None
        return self._wanted(replace(request, round=request.round + 1))


class _Overlap(Steps):
    """Lets the next cohort form while this one computes and uploads; notes shares that sites alone give away.

    Args:
        cohorts: of the job.
        following: what the next round wants; None: nothing.
        log: None: a sum that is lost is asked again of other devices.
        request: of the sum.
    """

    def __init__(
        self, cohorts: Cohorts, following: CohortWanted | None, log: ProtocolLog | None, request: Request
    ) -> None:
        self._cohorts, self._following = cohorts, following
        self._log, self._label = log, label_of(request.kind, request.phase, request.round)

    def computing(self) -> None:
        """See `Steps`."""
        if self._following is not None:
            self._cohorts.prepare(self._following)

    def opening(self, survivors: tuple[int, ...]) -> None:
        """See `Steps`."""
        if self._log is not None:
            self._log.give_away(self._label)
