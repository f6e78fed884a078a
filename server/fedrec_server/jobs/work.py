"""The process that works on a job: lays out its run, trains with cohorts, publishes, until there is nothing to do.

Each step looks at what is on the disk, does what is missing, and notes it; killed at any line it is taken up by the
next start. A round that fails for lack of devices is tried again after a pause that grows, for as long as it takes.
Operators pause, resume and abort a job through its record, which is looked at several times a second; the cohort at
work is told at once. Out of scope: which process it is (`runner`).
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedrec.core.errors import (
    BudgetExhausted,
    ConfigError,
    FedrecError,
    LedgerTampered,
    PrivacyRefused,
    RoundAbandoned,
    RunError,
    ServiceError,
)
from fedrec_server.jobs._interruptible import interruptible
from fedrec_server.jobs.events import reasons
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.offers import NoSites, Offer, Offers
from fedrec_server.jobs.preparation import PAYLOAD, prepared
from fedrec_server.jobs.publication import published
from fedrec_server.jobs.record import advance
from fedrec_server.rounds.asynchronous import open_asynchronous
from fedrec_server.rounds.cohorts import CohortSettings, Devices
from fedrec_server.rounds.coordinator import Coordinator, Outcome, open_coordinator

#: How often a job's record is looked at.
LOOK_SECONDS = 0.25
#: What another try cannot change.
_FATAL = (ConfigError, PrivacyRefused, BudgetExhausted, LedgerTampered, RunError)


class Worker:
    """Works on one job; see the module's text.

    Args:
        job: which.
        offers: where devices learn of it.
        stop: asked several times a second; when true, the process ends with everything on the disk.
        sleep: in seconds.
    """

    def __init__(
        self,
        job: Job,
        offers: Offers,
        *,
        stop: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._job, self._offers, self._stop, self._sleep = job, offers, stop, sleep
        self._looked, self._asked = 0.0, False
        self._failed_rounds = 0

    def work(self) -> str:
        """Do what the job's state asks for; the state in which there is nothing more to do.

        Raises:
            RunError: another process works on it.
            FedrecError: what could not be done now; it is noted in the record, and a later try may succeed.
        """
        with self._job.worked():
            while not self._stop():
                record = self._job.record()
                try:
                    if record.state == "running":
                        self._train(record.run)
                    elif record.state == "trained":
                        self._publish(record.run)
                    else:
                        self._withdraw(record.run, record.state)
                        break
                except FedrecError as error:
                    self._note(record.run, record.state, error)
                except OSError as error:
                    place = error.filename or self._job.folder
                    with suppress(OSError):  # the disk may be full
                        self._job.fail(f"{place}: {error.strerror}")
                    raise ServiceError(
                        f"{place} cannot be used ({error.strerror}): make room, or give rights; nothing is lost"
                    ) from error
            return self._job.record().state

    def _note(self, run: int, state: str, error: FedrecError) -> None:
        """A run that cannot be carried on fails; a result that cannot be published waits."""
        self._job.events.note("error", run=run, error=type(error).__name__, message=str(error))
        if self._job.record().state != state:
            return  # an operator asked for another one meanwhile
        if state == "running" and isinstance(error, _FATAL) and not _for_room(error):
            advance(self._job.folder, "failed", self._job.clock(), error=str(error))
            return
        with suppress(OSError):  # the disk may be full
            self._job.fail(str(error))
        raise error

    # Training --------------------------------------------------------------------------------------------

    def _train(self, number: int) -> None:
        job = self._job
        folder = prepared(job, number)
        offer = self._signed(folder, number)
        self._offers.make(offer)
        with self._offers.open(offer, self._over, job.specification.patience) as (exchange, cohorts):
            devices = Devices(
                exchange=interruptible(exchange, self._over),
                cohorts=cohorts,
                signer=job.signer,
                settings=CohortSettings(offer.target, offer.least, job.specification.job.cohort.wait_seconds),
            )
            while not self._over():
                outcome = self._rounds(folder, number, devices)
                if outcome is not None and outcome.finished:
                    self._offers.end(offer.id, "trained")
                    advance(job.folder, "trained", job.clock())
                    job.events.note("trained", run=number, rounds=outcome.rounds)
                    return

    def _rounds(self, folder: Path, number: int, devices: Devices) -> Outcome | None:
        """Rounds until the run is finished, or stopped, or one fails; None: one failed, and the pause is over."""
        place, staleness = folder / "coordinator", self._job.specification.job.staleness

        def tell(event: dict[str, Any]) -> None:
            self._tell(number, event)

        coordinator: Coordinator
        try:
            if staleness:
                coordinator = open_asynchronous(
                    place, NoSites(), devices=devices, staleness=staleness, on_event=tell, stop=self._over
                )
            else:
                coordinator = open_coordinator(
                    place, NoSites(), devices=devices, on_event=tell, stop=self._over
                )
            return coordinator.run()
        except RoundAbandoned as error:
            self._job.fail(str(error))
            self._wait(number)
            return None

    def _tell(self, number: int, event: dict[str, Any]) -> None:
        """A round's record as an event of the job."""
        if "round" not in event:
            return
        failed = bool(event.get("abandoned") or event.get("lost"))
        self._failed_rounds = self._failed_rounds + 1 if failed else 0
        if not failed:
            self._job.fail("")
        self._job.events.note(
            "round failed" if failed else "round",
            run=number,
            round=event["round"],
            devices=event["nodes"],
            missing=len(event.get("failures", {})),
            reasons=reasons(event.get("failures", {})),
            seconds=round(event.get("seconds", 0.0), 3),
            **{name: event[name] for name in ("staleness", "applied") if name in event},
        )

    def _wait(self, number: int) -> None:
        """The pause after a failed round."""
        settings = self._job.specification.job
        pause = min(
            settings.retry_seconds * 2.0 ** min(self._failed_rounds - 1, 30), settings.longest_retry_seconds
        )
        self._job.events.note("waiting", run=number, seconds=pause)
        until = time.monotonic() + pause
        while time.monotonic() < until and not self._over():
            self._sleep(min(LOOK_SECONDS, pause))

    def _over(self) -> bool:
        """Whether to let go of the run: the process ends, or an operator asked for another state."""
        if self._stop():
            return True
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self._asked = now, self._job.record().state != "running"
        return self._asked

    # What devices are told -------------------------------------------------------------------------------

    def _signed(self, folder: Path, number: int) -> Offer:
        """The run's document, signed; the same bytes each time."""
        job, payload = self._job, json.loads((folder / PAYLOAD).read_text())
        id_ = job.offer(number)
        document = job.registry.sign_task(id_, payload, job.keys(), job.clock())
        return Offer(
            id_,
            job.record().population,
            document,
            payload["cohort"]["target"],
            payload["cohort"]["least"],
            payload["node"]["aggregation"]["max_nodes"],
            payload["cycle"],
        )

    def _withdraw(self, number: int, state: str) -> None:
        if number:
            self._offers.end(self._job.offer(number), state)

    def _publish(self, number: int) -> None:
        self._offers.end(self._job.offer(number), "trained")
        _publish(self._job)


def _for_room(error: BaseException | None) -> bool:
    """Whether it came of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def publish(job: Job) -> dict[str, Any]:
    """Publish what a job has trained, by hand; again, nothing changes.

    Raises:
        RunError: there is nothing trained, or another process works on it.
        FedrecError: it cannot be published now; nothing is lost.
    """
    record = job.record()
    if record.state == "published":
        return published(job, record.run)
    if record.state != "trained":
        raise RunError(
            f"job {job.id[:8]} is {record.state}: only one that is trained can be published; wait for its last round"
        )
    with job.worked():
        return _publish(job)


def _publish(job: Job) -> dict[str, Any]:
    """The publication of a trained run, its next run planned."""
    record = job.record()
    found = published(job, record.run)
    period = job.specification.job.period_seconds
    planned = None if period is None else max(record.started + period, job.clock())
    advance(job.folder, "published", job.clock(), version=found["version"], next_start=planned)
    job.events.note("published", run=record.run, **found)
    return found


def orphaned(parent: int) -> bool:
    """Whether the process that started this one is gone."""
    return os.getppid() != parent
