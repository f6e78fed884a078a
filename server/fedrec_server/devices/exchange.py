"""What a running job sees of its devices: cohorts that form, questions to them, answers and sums.

    form -> exchange (advertise) -> exchange (share) -> exchange_summed (vectors) -> exchange ... -> close

All of it passes through the database, so that any front end may answer any device. One process at a time speaks for a
job; what an earlier one has left is ended when the next one begins. Out of scope: front ends (`server`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedrec.core.errors import AggregationAborted, ProtocolError, RegistryError
from fedrec.core.messages import Failure, Reply, Request, Summed
from fedrec.wire.device_messages import load, split
from fedrec_server.devices.state import cohorts, jobs, stages
from fedrec_server.devices.state.cohorts import CohortRow
from fedrec_server.devices.state.database import State
from fedrec_server.devices.state.stages import AnswerRow, StageRow
from fedrec_server.rounds.cohorts import Cohort, CohortWanted, Ending, Joined, Patience

#: Between two looks for answers: a part of the time waited so far.
FIRST_POLL_SECONDS, LAST_POLL_SECONDS, POLL_SHARE = 0.05, 1.0, 0.03
FORM_POLL_SECONDS = 0.1
#: A cohort that was prepared takes devices for so long beyond the time it would have.
PREPARED_SECONDS = 3_600.0


@dataclass(frozen=True)
class RetryAfter:
    """When the devices of a cohort that is over are to check in again, in seconds, by how it ended."""

    done: float = 60.0
    too_few: float = 10.0
    failed: float = 10.0
    aborted: float = 300.0


class DeviceExchange:
    """`Exchange`, `SummingExchange` and `Cohorts` of one job.

    Args:
        state: the database.
        job: its id; the job's row must be there.
        retry_after: for devices whose cohort is over.
        patience: when a stage closes without its last devices; None: at its deadline.

    Raises:
        RegistryError: there is no such job.
    """

    def __init__(
        self,
        state: State,
        job: str,
        retry_after: RetryAfter | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._state, self._job, self._patience = state, job, patience or Patience()
        self._retry_after = retry_after or RetryAfter()
        with state.read() as connection:
            if jobs.find(connection, job) is None:
                raise RegistryError(f"job {job} is not in the database: create it first")
        self.end_all("failed")

    def end_all(self, ending: Ending) -> None:
        """End every cohort of the job that is not over."""
        with self._state.write() as connection:
            for row in cohorts.live(connection, self._job):
                cohorts.finish(connection, row.id, ending, getattr(self._retry_after, ending))

    # Cohorts -------------------------------------------------------------------------------------------

    def form(self, wanted: CohortWanted, stop: Callable[[], bool]) -> Cohort:
        """See `Cohorts`: complete as soon as `target` devices are here, or with `least` when the time is over."""
        cohort = self._take_prepared(wanted) or self._open(wanted, wanted.wait_seconds)
        until = time.monotonic() + wanted.wait_seconds
        while True:
            if stop():
                self._finish(cohort, "aborted")
                raise AggregationAborted("stopped while a cohort formed: nothing was sent")
            late = time.monotonic() >= until
            found = self._start(cohort, wanted.least if late else wanted.target)
            if found is not None:
                return found
            if late:
                self._finish(cohort, "too_few")
                raise AggregationAborted(
                    f"fewer than {wanted.least} devices joined within {wanted.wait_seconds:g} s: "
                    "wait longer, or ask for fewer"
                )
            time.sleep(min(FORM_POLL_SECONDS, max(until - time.monotonic(), 0.001)))

    def prepare(self, wanted: CohortWanted) -> None:
        """See `Cohorts`."""
        if self._forming() is None:
            self._open(wanted, wanted.wait_seconds + PREPARED_SECONDS)

    def close(self, cohort: Cohort, ending: Ending) -> None:
        """See `Cohorts`."""
        self._finish(cohort.id, ending)

    def _open(self, wanted: CohortWanted, seconds: float) -> str:
        row = CohortRow(
            id=secrets.token_hex(16),
            job=self._job,
            round=wanted.round,
            phase=wanted.phase,
            attempt=0,
            state=cohorts.FORMING,
            target=wanted.target,
            least=wanted.least,
            most=wanted.most,
            joined=0,
            deadline=time.time() + seconds,
            outcome="",
            retry_after=0.0,
        )
        with self._state.write() as connection:
            cohorts.add(connection, row)
        return row.id

    def _forming(self) -> CohortRow | None:
        with self._state.read() as connection:
            live = cohorts.live(connection, self._job)
        return next((row for row in live if row.state == cohorts.FORMING), None)

    def _take_prepared(self, wanted: CohortWanted) -> str | None:
        row = self._forming()
        if row is None:
            return None
        with self._state.write() as connection:
            cohorts.change(
                connection,
                row.id,
                round=wanted.round,
                phase=wanted.phase,
                target=wanted.target,
                least=wanted.least,
                most=wanted.most,
                deadline=time.time() + wanted.wait_seconds,
            )
        return row.id

    def _start(self, cohort: str, enough: int) -> Cohort | None:
        """The cohort, complete from now on; None: fewer than `enough` devices are here."""
        since = time.time() - cohorts.HERE_SECONDS
        with self._state.read() as connection:
            if cohorts.count(connection, cohort, since) < enough:
                return None
        with self._state.write() as connection:
            cohorts.find(connection, cohort, lock=True)
            if cohorts.count(connection, cohort, since) < enough:
                return None
            cohorts.drop_unseen(connection, cohort, since)
            cohorts.change(connection, cohort, state=cohorts.RUNNING)
            here = [each for each in cohorts.members(connection, cohort) if not each.gone]
        return Cohort(cohort, tuple(Joined(_node(cohort, m.place), m.identity, m.users) for m in here))

    def _finish(self, cohort: str, ending: Ending) -> None:
        with self._state.write() as connection:
            cohorts.finish(connection, cohort, ending, getattr(self._retry_after, ending))

    # Stages --------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """None: devices are asked as members of a cohort."""
        return []

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """See `Exchange`; all nodes are of one cohort."""
        if not requests:
            return {}
        stage, waited = self._ask(requests, deadline_seconds)
        answers: dict[str, Reply | Failure] = {}
        with self._state.read() as connection:
            for row in stages.answers(connection, stage.cohort, stage.number):
                answers[_node(stage.cohort, row.place)] = _reply(row)
        return {node: answers.get(node, _none(waited)) for node in requests}

    def exchange_summed(
        self, requests: Mapping[str, Request], deadline_seconds: float, dtype: str, length: int
    ) -> Summed:
        """See `SummingExchange`."""
        if not requests:
            return Summed(stages.zeros(dtype, length), (), {})
        stage, waited = self._ask(requests, deadline_seconds, dtype, length)
        came: list[str] = []
        failures: dict[str, Failure] = {}
        with self._state.read() as connection:
            total = stages.total(connection, stage)
            for row in stages.answers(connection, stage.cohort, stage.number):
                node = _node(stage.cohort, row.place)
                if row.refused:
                    failures[node] = _refusal(row)
                else:
                    came.append(node)
        late = requests.keys() - set(came) - failures.keys()
        return Summed(total, tuple(came), failures | dict.fromkeys(late, _none(waited)))

    def _ask(
        self, requests: Mapping[str, Request], deadline_seconds: float, dtype: str = "", length: int = 0
    ) -> tuple[StageRow, float]:
        """Open a stage, wait, close it; with the seconds that it was open."""
        common, own = split(requests)
        places = {int(node.rpartition("/")[2]): part for node, part in own.items()}
        (cohort,) = {node.rpartition("/")[0] for node in requests}
        first = next(iter(requests.values()))
        with self._state.write() as connection:
            stage = StageRow(
                cohort=cohort,
                number=stages.last_number(connection, cohort) + 1,
                kind=first.kind,
                round=first.round,
                phase=first.phase,
                common=stages.sha256(common),
                common_bytes=len(common),
                deadline=time.time() + deadline_seconds,
                open=True,
                dtype=dtype,
                length=length,
            )
            stages.begin(connection, stage, common, places)
        start = time.monotonic()
        self._wait(stage, len(own), deadline_seconds)
        with self._state.write() as connection:
            stages.close(connection, cohort, stage.number)
        return stage, time.monotonic() - start

    def _wait(self, stage: StageRow, asked: int, seconds: float) -> None:
        """Until all have answered, patience with the last ones is over, or the time is."""
        start, passed, ends = time.monotonic(), 0.0, seconds
        patient = True
        while passed < ends:
            with self._state.read() as connection:
                missing = stages.missing(connection, stage.cohort, stage.number)
            if not missing:
                return
            if patient and (enough := self._patience.seconds(asked, missing, passed)) is not None:
                ends, patient = min(ends, enough), False
            pause = max(FIRST_POLL_SECONDS, min(POLL_SHARE * passed, LAST_POLL_SECONDS))
            time.sleep(min(pause, ends - passed))
            passed = time.monotonic() - start


def _node(cohort: str, place: int) -> str:
    return f"{cohort}/{place}"


def _none(seconds: float) -> Failure:
    return Failure(f"no answer within {seconds:.0f} s")


def _refusal(row: AnswerRow) -> Failure:
    return Failure(f"refused: {(row.content or b'').decode('ascii', 'replace')}")


def _reply(row: AnswerRow) -> Reply | Failure:
    if row.refused or row.content is None:
        return _refusal(row)
    try:
        return load(row.content, Reply)
    except ProtocolError as error:
        return Failure(str(error))
