"""One call of `train_if_eligible`: check in, evaluate the task, join cohorts and take part, report.

A device may be in several rounds in one call, as far as the job goes, the plan covers and the deadline allows. What
it was charged is in the store before the masked vector leaves (`participations`); a session that was not charged has
released nothing and cost nothing. Out of scope: questions and answers (`cohort_session`), what is asked of a task
(`task_evaluation`).
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fedrec import __version__
from fedrec.core.errors import (
    BadContent,
    Expired,
    FedrecError,
    NotPublished,
    ServiceError,
    StoreError,
    WrongPopulation,
)
from fedrec.core.extras import require
from fedrec.recommenders.registry import build, parse
from fedrec.secagg.roster import Identity
from fedrec.wire.device_messages import join_statement
from fedrec_client.store.base import Store
from fedrec_client.store.training_profile import Profile
from fedrec_client.store.trusted_time import CLOCK_SKEW_SECONDS, TrustedTime
from fedrec_client.terms.participation import Book
from fedrec_client.terms.platform import Platform
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.results import TrainingReport
from fedrec_client.terms.task_evaluation import evaluate_task
from fedrec_client.training import participations
from fedrec_client.training._charge import Charge, Checked, Job
from fedrec_client.training._device_node import make_node
from fedrec_client.training.cohort_session import CohortSession, Ending
from fedrec_client.training.device_service import DeviceService, Entrance
from fedrec_client.updates.model_updates import Served

#: How soon a call that is stopped returns; the thread that computes ends at its next step.
TICK_SECONDS = 0.02
#: In words for the user, by the code of the service or of the session.
ENDINGS = {
    "done": "done",
    "too_few": "too few devices took part; nothing was summed",
    "failed": "the round failed on the server; try again later",
    "late": "this device was too late for the round",
    "full": "the round has enough devices; try again later",
    "aborted": "the job was stopped",
    "unknown": "the round is over",
    "stopped": "stopped",
    "deadline": "the deadline has passed",
    "unreachable": "the server could not be reached",
    "protocol": "the server sent something that this device does not accept",
    "refused": "this device refused a step of the server",
}


@dataclass(frozen=True)
class Admission:
    """How a device shows that it may join.

    Attributes:
        verifier: name of the service's verifier; empty: none is asked for.
        evidence: for it.
    """

    verifier: str = ""
    evidence: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Session:
    """What one call needs; see `Client.train_if_eligible`.

    Attributes:
        lock: of the store and of what the user decides: a charge is made inside it, so that no withdrawal and no
            deletion falls between the question whether it may be made and the write.
    """

    store: Store
    service: DeviceService
    platform: Platform
    policy: Policy
    population: str
    served: Served
    profile: Profile
    verified_task: Callable[[str, bytes], dict[str, Any]]
    now: Callable[[], float]
    stopped: Callable[[], bool]
    lock: AbstractContextManager[Any]
    on_step: Callable[[str], None] = lambda step: None
    admission: Admission = Admission()

    def run(self, deadline_seconds: float) -> TrainingReport:
        """See `Client.train_if_eligible`."""
        ends = time.monotonic() + deadline_seconds
        with self.lock:
            participations.end_cut_off(self.store, self.platform.now())
        report = TrainingReport(False, 0, 0, 0.0, self.platform.now(), "there is no job now")
        while True:
            before = report.rounds
            try:
                report, again = self._once(report, ends)
            except ServiceError:
                if not before:
                    raise
                return replace(report, reason=ENDINGS["unreachable"])  # of what was done, the caller hears
            if not again or report.rounds == before or self.stopped():
                return report

    def _once(self, report: TrainingReport, ends: float) -> tuple[TrainingReport, bool]:
        """The report after one more check-in, and whether there may be another round."""
        offer = self._waiting(
            lambda: self.service.check_in(self.population, __version__, self.served.version)
        )
        if offer is None:
            return replace(report, reason="stopped"), False
        retry = self.platform.now() + random.uniform(*offer.retry_after_seconds)
        report = replace(report, next_check_in=retry)
        job = self._job(offer.job) if offer.job else None
        if job is None or isinstance(job, str):
            return report if report.joined else replace(report, reason=job or report.reason), False
        report = self._take_part(job, report, ends)
        return report, report.reason == ENDINGS["done"]

    # The task ------------------------------------------------------------------------------------------

    def _job(self, job: str) -> Job | str:
        """The job, or why this device does not take part in it."""
        try:
            document = self._waiting(lambda: self.service.task(job))
        except NotPublished:
            return "the job is over"
        if document is None:
            return "stopped"
        task = self._verified(document, job)
        known = participations.read(self.store, job)
        against, price = evaluate_task(self.policy, task, Book(self.store), self.platform.now(), known.count)
        if known.last_round and known.last_round + (task.get("cycle") or 1) > task["rounds"]:
            return "this device has done its part in the job"
        if against:
            self._note("refused", job, reasons=against)
            return f"refused: {'; '.join(against)}"
        model = build(parse(task["node"]["model"]))
        require(f"training a model of kind {model.kind!r}", model.packages)
        return Job(job, task, price)

    def _verified(self, document: bytes, job: str) -> dict[str, Any]:
        """The task, once it is genuine, in time, of this job and for the items of the model in use."""
        task, now = self.verified_task(job, document), self.now()
        try:
            if task["population"] != self.population:
                raise WrongPopulation(f"a task of population {task['population']!r:.80}: wait for another")
            items = hashlib.sha256("\0".join(self.served.item_index.items.ids).encode()).hexdigest()
            if task["job"] != job:
                raise BadContent("a task of another job than was asked for: try again")
            if now > task["expires"]:
                raise Expired(f"the task of job {job[:8]} has expired: wait for another")
            if task["model_version"] != self.served.version or task["items"] != items:
                raise BadContent(
                    f"the task is for the items of model version {task['model_version']}, "
                    f"{self.served.version} is in use: check for an update first"
                )
            if now < (created := float(task.get("created", 0))) - CLOCK_SKEW_SECONDS:
                raise BadContent(f"the task of job {job[:8]} is from the future: set the clock")
            for name, kind in (("rounds", int), ("node", dict)):
                if not isinstance(task[name], kind):
                    raise TypeError(name)
        except (KeyError, TypeError) as error:
            raise BadContent(f"a task without what it needs ({error!s:.60}): update the app") from error
        if created:
            TrustedTime(self.store).accept(created)
        return task

    # Cohorts -------------------------------------------------------------------------------------------

    def _take_part(self, job: Job, report: TrainingReport, ends: float) -> TrainingReport:
        """The report after one cohort, or after the time for one has passed."""
        identity = Identity.create()
        session = self._join(job, identity, ends)
        if isinstance(session, str):
            return report if report.joined else replace(report, reason=session)
        self.on_step("joined")
        ending, charged = self._session(job, identity, session, ends)
        spent = report.epsilon_spent + (job.price.epsilon if charged else 0.0)
        again = report.next_check_in
        if ending.retry_after_seconds:
            again = self.platform.now() + ending.retry_after_seconds
        reason = ENDINGS.get(ending.reason, ending.reason)
        return TrainingReport(
            report.joined or ending.sent,
            report.rounds + ending.sent,
            report.bytes_up + ending.bytes_up,
            spent,
            again,
            reason,
        )

    def _join(self, job: Job, identity: Identity, ends: float) -> bytes | str:
        """This device's session in the next cohort, or why it has none; waits until one forms."""
        known = participations.read(self.store, job.id)
        entrance = Entrance(
            job.id,
            identity.public,
            identity.sign(join_statement(job.id)),
            self.admission.verifier,
            self.admission.evidence,
            known.last_round,
        )
        self.on_step("waiting")
        while True:
            joined = self._waiting(lambda: self.service.join(entrance))
            if joined is None:
                return "stopped"
            if joined.session:
                return bytes(joined.session)
            left = ends - time.monotonic()
            if joined.retry_after_seconds >= left:
                return "no cohort formed within the deadline; nothing was sent"
            until = time.monotonic() + joined.retry_after_seconds
            while time.monotonic() < until:
                if self.stopped():
                    return "stopped"
                time.sleep(TICK_SECONDS)

    def _session(self, job: Job, identity: Identity, session: bytes, ends: float) -> tuple[Ending, bool]:
        """How it went, and whether it was charged; computes and talks in a thread of its own."""
        charge = Charge(job, self.store, self.lock, self.platform.now, self.stopped)
        history = [int(index) for index in self.profile.history(self.served.item_index.items).item]
        stopping = threading.Event()
        taking_part = CohortSession(
            self.service,
            session,
            Checked(make_node(job.task["node"], self.served.item_index.items.ids, history, identity), charge),
            charge=charge,
            stopping=stopping,
            deadline=ends,
            on_step=self.on_step,
        )
        ending: Ending | None = None
        try:
            ending = self._watched(taking_part, stopping)
        finally:
            ending = ending or Ending("stopped", False, 0)
            with self.lock:
                charged = charge.end()
            self._close(job, ending, charged)
            if ending.reason in ("stopped", "deadline", "unreachable", "protocol"):
                with suppress(FedrecError):  # the service notices at the end of the stage, too
                    self.service.leave(session)
        return ending, charged

    def _watched(self, taking_part: CohortSession, stopping: threading.Event) -> Ending:
        """Return when the session is over, or at once when the call is stopped."""
        endings: list[Ending] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                endings.append(taking_part.run())
            except BaseException as error:
                errors.append(error)

        worker = threading.Thread(target=work, name="training", daemon=True)
        worker.start()
        try:
            while worker.is_alive():
                if self.stopped():
                    return Ending("stopped", taking_part.sent, taking_part.bytes_up)
                worker.join(TICK_SECONDS)
        finally:
            stopping.set()
        if errors:
            raise errors[0]
        return endings[0]

    def _waiting(self, call: Callable[[], Any]) -> Any:
        """The answer to a call, made in a thread of its own; None: the call was stopped before it came."""
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)

        worker = threading.Thread(target=work, name="call", daemon=True)
        worker.start()
        while worker.is_alive():
            if self.stopped():
                return None
            worker.join(TICK_SECONDS)
        if errors:
            raise errors[0]
        return results[0]

    def _close(self, job: Job, ending: Ending, charged: bool) -> None:
        said: dict[str, Any] = {"bytes": ending.bytes_up, "reason": ENDINGS.get(ending.reason, ending.reason)}
        if charged:
            said |= {"rounds": 1, "aggregator": "secagg"}
        # A store that is closed, full or deleted: what is left is ended when it is opened again.
        with suppress(StoreError), self.lock:
            what = "sent" if charged else "ended"
            participations.close(self.store, job.id, self.platform.now(), what, **said)

    def _note(self, what: str, job: str, **fields: Any) -> None:
        with self.lock:
            Book(self.store).note(what, self.platform.now(), job=job, **fields)
