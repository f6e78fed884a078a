"""The process that keeps jobs going: one process for each job that has something to do, started again when it dies.

What a job has to do is in its folder, so that nothing here need be kept: a runner that is killed is started again,
and finds what runs by the locks of workers. A worker whose runner is gone stops by itself. Out of scope: the work.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedrec.core.errors import FedrecError, RunError
from fedrec_server.jobs.events import Events
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.record import Record

LOOK_SECONDS = 0.5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
#: A worker that lived this long has got somewhere; the next pause is short again.
STEADY_SECONDS = 60.0
#: Before a worker that does not end is killed.
STOP_SECONDS = 30.0
#: States in which a job has something to do.
BUSY = ("running", "trained")


@dataclass
class _Child:
    """A worker's process, and when it may be started again."""

    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = 0.0
    not_before: float = 0.0
    state: str = field(default="")


class Runner:
    """See the module's text.

    Args:
        root: folder of all jobs.
        command: starts the worker of a job, by its id.
        clock: seconds since 1970, for schedules.
        steady: seconds that do not jump, for pauses.
    """

    def __init__(
        self,
        root: Path,
        command: Callable[[str], Sequence[str]],
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._command, self._clock, self._steady = root, command, clock, steady
        self._children: dict[str, _Child] = {}

    @property
    def working(self) -> Mapping[str, int]:
        """Process id of each worker, by job."""
        alive = {name: child.process for name, child in self._children.items()}
        return {name: process.pid for name, process in alive.items() if process and process.poll() is None}

    def run(self, stop: Callable[[], bool], on_step: Callable[[str], None] = lambda step: None) -> None:
        """Look at all jobs again and again until told to stop; then all workers end, one after the other."""
        try:
            while not stop():
                self.look(on_step)
                time.sleep(LOOK_SECONDS)
        finally:
            self.end()

    def look(self, on_step: Callable[[str], None] = lambda step: None) -> None:
        """Start what has to be started; one job that cannot be read stops no other."""
        for job in self._jobs():
            child = self._children.setdefault(job.id, _Child())
            try:
                record = self._due(job, job.record())
                self._reap(job, child, record, on_step)
                if record.state in BUSY and child.process is None and self._steady() >= child.not_before:
                    self._begin(job, child, on_step)
                child.state = record.state
            except (FedrecError, OSError) as error:
                on_step(f"job {job.id[:8]}: {error}")

    def end(self) -> None:
        """Ask every worker to stop, wait for it, and kill it if it does not."""
        alive = [child.process for child in self._children.values() if child.process is not None]
        for process in alive:
            process.terminate()
        until = self._steady() + STOP_SECONDS
        for process in alive:
            try:
                process.wait(max(until - self._steady(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._children.clear()

    def _jobs(self) -> list[Job]:
        try:
            return Job.all(self._root, self._clock)
        except RunError:
            # Of the jobs of a folder, those whose records can be read.
            return [job for job in Job.folders(self._root, self._clock) if _readable(job)]

    def _due(self, job: Job, record: Record) -> Record:
        """The record after the start of the next run, if its time has come."""
        planned = record.next_start
        if record.state != "published" or planned is None or self._clock() < planned:
            return record
        return job.next_run(record)

    def _reap(self, job: Job, child: _Child, record: Record, on_step: Callable[[str], None]) -> None:
        """Take note of a worker that has ended; a crash is answered by a pause that grows."""
        if record.state != child.state and child.process is None:
            child.pause = child.not_before = 0.0  # an operator has changed something
        if child.process is None or child.process.poll() is None:
            return
        code, lived = child.process.returncode, self._steady() - child.started
        child.process = None
        if code == 0:
            child.pause = child.not_before = 0.0
            return
        steady = lived > STEADY_SECONDS or not child.pause
        child.pause = FIRST_PAUSE_SECONDS if steady else min(2 * child.pause, LONGEST_PAUSE_SECONDS)
        child.not_before = self._steady() + child.pause
        Events(job.folder, self._clock).note("worker died", code=code, seconds=child.pause)
        on_step(f"job {job.id[:8]}: its worker ended with {code}; again in {child.pause:g} s")

    def _begin(self, job: Job, child: _Child, on_step: Callable[[str], None]) -> None:
        if job.is_worked:
            return  # by a worker of an earlier runner, which will stop, or of another host
        child.process = subprocess.Popen(list(self._command(job.id)), stdout=subprocess.DEVNULL)
        child.started = self._steady()
        on_step(f"job {job.id[:8]}: process {child.process.pid} works on it")


def _readable(job: Job) -> bool:
    try:
        job.record()
    except RunError:
        return False
    return True
