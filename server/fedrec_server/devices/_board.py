"""What a front end knows of jobs and cohorts: a thread looks into the database and wakes the calls that wait.

Held calls wait for the event of a view; when the database says something new of its cohort, there is a new view.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from sqlalchemy.exc import SQLAlchemyError

from fedrec_server.devices.state import cohorts, jobs, stages
from fedrec_server.devices.state.cohorts import CohortRow
from fedrec_server.devices.state.database import State
from fedrec_server.devices.state.jobs import JobRow
from fedrec_server.devices.state.stages import StageRow

log = logging.getLogger(__name__)

JOBS_SECONDS = 1.0
#: Cohorts that are over and still known.
ENDED = 10_000


@dataclass(frozen=True)
class View:
    """A cohort as it is now.

    Attributes:
        cohort: its row.
        stage: its last one.
        full: no more devices may join.
        changed: set when there is another view.
    """

    cohort: CohortRow
    stage: StageRow | None
    full: bool = False
    changed: threading.Event = field(default_factory=threading.Event, compare=False)

    def news(self, other: View) -> bool:
        """Whether devices are to know more."""
        mine = (self.cohort.state, self.cohort.outcome, self.stage)
        return mine != (other.cohort.state, other.cohort.outcome, other.stage)


class Board:
    """Looks again and again until it is closed; safe for several threads.

    Args:
        state: the database.
        poll_seconds: between two looks.
    """

    def __init__(self, state: State, poll_seconds: float) -> None:
        self._state, self._poll_seconds = state, poll_seconds
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._live: dict[str, View] = {}
        self._ended: OrderedDict[str, View] = OrderedDict()
        self._jobs: dict[str, JobRow] = {}
        self._jobs_at, self._mark = -JOBS_SECONDS, object()
        self._closing = threading.Event()
        self.look()
        self._thread = threading.Thread(target=self._watch, name="stages", daemon=True)
        self._thread.start()

    @property
    def jobs(self) -> list[JobRow]:
        """Those that devices may join."""
        return list(self._jobs.values())

    @property
    def closing(self) -> bool:
        """Whether no more calls are to be held."""
        return self._closing.is_set()

    def job(self, job: str) -> JobRow | None:
        """One that devices may join."""
        return self._jobs.get(job)

    def forming(self, job: str) -> View | None:
        """The cohort of a job that devices can join now."""
        now = time.time()
        with self._lock:
            found = [
                view
                for view in self._live.values()
                if view.cohort.job == job
                and view.cohort.state == cohorts.FORMING
                and view.cohort.deadline > now
            ]
        return min(found, key=lambda view: (view.cohort.round or 1 << 31, view.cohort.id)) if found else None

    def running(self, job: str) -> View | None:
        """A cohort of a job that is at work."""
        with self._lock:
            live = list(self._live.values())
        return next((v for v in live if v.cohort.job == job and v.cohort.state == cohorts.RUNNING), None)

    def view(self, cohort: str) -> View | None:
        """A cohort; None: there is no such cohort, or it was over long ago."""
        with self._lock:
            found = self._live.get(cohort) or self._ended.get(cohort)
        if found is not None:
            return found
        with self._state.read() as connection:
            row = cohorts.find(connection, cohort)
        if row is None:
            return None
        self.look()
        with self._lock:
            if row.state == cohorts.OVER and cohort not in self._ended:
                self._end(View(row, None))
            return self._live.get(cohort) or self._ended.get(cohort)

    def look(self) -> None:
        """See what is new, now; where nothing has changed that is one short question to the database."""
        with self._looking, self._state.read() as connection:
            now, mark = time.monotonic(), cohorts.mark(connection)
            if mark == self._mark and now < self._jobs_at + JOBS_SECONDS:
                return
            self._mark = mark
            if now >= self._jobs_at + JOBS_SECONDS:
                self._jobs = {job.id: job for job in jobs.running(connection)}
                self._jobs_at = now
            rows = {row.id: row for row in cohorts.live(connection)}
            # Stages after cohorts: a cohort that ended in between is seen as over at the next look.
            last = stages.latest(connection, rows) if rows else {}
            forming = [row.id for row in rows.values() if row.state == cohorts.FORMING]
            present = cohorts.present(connection, forming) if forming else {}
            with self._lock:
                missing = self._live.keys() - rows.keys()
            ended = cohorts.find_all(connection, missing) if missing else []
        views = [View(r, last.get(r.id), present.get(r.id, 0) >= r.most) for r in rows.values()]
        self._show(views, ended, missing)

    def _show(self, views: Iterable[View], ended: Iterable[CohortRow], missing: Iterable[str]) -> None:
        woken: list[threading.Event] = []
        with self._lock:
            for view in views:
                before = self._live.get(view.cohort.id)
                if before is not None and not before.news(view):
                    view = replace(view, changed=before.changed)
                elif before is not None:
                    woken.append(before.changed)
                self._live[view.cohort.id] = view
            gone = [self._live.pop(cohort) for cohort in missing if cohort in self._live]
            for row in ended:
                self._end(View(row, None))
        for event in [*woken, *(view.changed for view in gone)]:
            event.set()

    def _end(self, view: View) -> None:
        self._ended[view.cohort.id] = view
        while len(self._ended) > ENDED:
            self._ended.popitem(last=False)

    def close(self) -> None:
        """Wake all that wait, and look no more."""
        self._closing.set()
        with self._lock:
            live = list(self._live.values())
        for view in live:
            view.changed.set()
        self._thread.join()

    def _watch(self) -> None:
        failing = False
        while not self._closing.wait(self._poll_seconds if not failing else 1.0):
            try:
                self.look()
                failing = False
            except SQLAlchemyError as error:
                if not failing:
                    log.error("the database does not answer: %s", str(error).partition("\n")[0])
                failing = True
            except Exception:
                log.exception("the database could not be read")
                failing = True
