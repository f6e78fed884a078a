"""Lets the devices of consenting users train together: one job at a time, shown step by step.

The job is an operator's; its worker runs here in a thread, and sees public keys, encrypted updates and their sum. Out
of scope: what happens on a device (`people`), what is computed and published (`layer`), the servers (`services`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from fedrec.core.errors import FedrecError
from fedrec_client.terms.results import TrainingReport
from fedrec_server.jobs.events import read_events
from films.journal import Journal
from films.people import Person
from films.services import ModelService, Training
from films.words import NO_JOB, STEPS, NotNowError, together, trouble, without_a_model

log = logging.getLogger(__name__)

MIN_DEVICES = 3
#: For all rounds; a session that takes longer ends by itself.
DEADLINE_SECONDS = 120.0
#: For which a round waits for its devices.
JOIN_SECONDS = 10.0
#: For what remains to be done when all devices are done.
SUM_SECONDS = 5.0
STAGES = ("Join", "Train", "Publish", "Update")


@dataclass
class Progress:
    """For the page.

    Attributes:
        stage: index of `STAGES` that is under way; len(STAGES): all are done; -1: none was started.
        text: what is happening, in one line.
        running: a job is under way.
        failed: the last one brought no model.
    """

    stage: int = -1
    text: str = ""
    running: bool = False
    failed: bool = False


@dataclass
class Together:
    """Lets users train together, one job at a time, in the background.

    Attributes:
        service: that has jobs.
        people: of the page.
        journal: shows every step.
        revision: grows with everything that the page shows.
    """

    service: ModelService
    people: Sequence[Person]
    journal: Journal
    progress: Progress = field(default_factory=Progress)
    revision: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ends = False
        self._steps: dict[str, str] = {}
        self._joined: set[str] = set()
        self._known, self._count, self._summed = 0, 0, False
        self._alone_since: float | None = None

    def willing(self) -> list[Person]:
        """Who has agreed and whose device can now."""
        return [person for person in self.people if person.eligible().ok]

    def start(self) -> None:
        """Begin a job.

        Raises:
            NotNowError: one is under way, or too few devices are willing.
        """
        with self._lock:
            if self.progress.running:
                raise NotNowError("the devices are training: wait until they are done")
            willing = self.willing()
            if len(willing) < MIN_DEVICES:
                raise NotNowError(
                    f"{len(willing)} devices are ready: a sum over fewer than {MIN_DEVICES} would tell too much"
                )
            training = self.service.training(len(willing), JOIN_SECONDS)
            self._steps, self._joined = {}, set()
            self._known, self._count, self._summed, self._alone_since = 0, len(willing), False, None
            self._at(0, "Devices are asked to join")
            self._thread = threading.Thread(target=self._run, args=(training, willing), name="together")
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Until the job that is under way has ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """End what is under way, for good; within seconds."""
        self._ends = True
        for person in self.people:
            person.client.stop_training()
        self.wait(60)

    def _run(self, training: Training, willing: list[Person]) -> None:
        devices = len(willing)
        self.journal.service("Training", f"job {training.id[:8]} opened for {devices} devices")
        try:
            with ThreadPoolExecutor(devices) as pool:
                sessions = {person.name: pool.submit(self._device, training, person) for person in willing}
                try:
                    version = training.work(partial(self._gives_up, list(sessions.values())))
                finally:
                    training.offered.set()
                    for person in willing:  # whose part is over in any case
                        person.client.stop_training()
                reports = {name: _report(session) for name, session in sessions.items()}
            self._told(training)
            if version:
                return self._hand_out(version)
            text = without_a_model(devices, len(self._joined), reports)
            self.journal.service("Training", text)
            self._at(self.progress.stage, text, running=False, failed=True)
        except Exception as error:  # shown on the page, and the next job can be tried
            log.info("job %s ended without a model: %s", training.job.id, error)  # for who runs the service
            self.journal.service("Training", "ended without a model: internal error")
            text = "Something went wrong in this app. There is no new model; the privacy pages say what was spent."
            self._at(self.progress.stage, text, running=False, failed=True)
            if not isinstance(error, FedrecError):
                raise RuntimeError("a job ended in an unexpected way") from error

    def _gives_up(self, sessions: Sequence[Future[TrainingReport]]) -> bool:
        """Whether nothing more can come of it: the app ends, or all devices are gone."""
        if self._ends:
            return True
        if not all(session.done() for session in sessions):
            self._alone_since = None
            return False
        self._alone_since = self._alone_since or time.monotonic()
        return time.monotonic() - self._alone_since > SUM_SECONDS

    def _device(self, training: Training, person: Person) -> TrainingReport:
        """One device's part; every device asks by itself in a real app, and comes back when there is no job yet."""
        training.offered.wait(DEADLINE_SECONDS)
        until = time.monotonic() + JOIN_SECONDS
        while True:
            report = person.train(DEADLINE_SECONDS, partial(self._step, training, person.name))
            waits = report.reason == NO_JOB and not self._ends
            if report.joined or not waits or time.monotonic() > until:
                break
            time.sleep(0.2)
        if report.reason == "done":
            with self._lock:
                self._summed = True
                self._at(2, "The updates are in; their sum becomes a new version")
        return report

    def _step(self, training: Training, name: str, step: str) -> None:
        """A device has come to another step."""
        with self._lock:
            self._told(training)
            self._steps[name] = step
            if step == "joined":
                self._joined.add(name)
            if not self._summed:
                stage = int(len(self._joined) >= MIN_DEVICES)
                self._at(stage, together(list(self._steps.values()), self._count))
        if step in STEPS:
            self.journal.device(name, STEPS[step])

    def _told(self, training: Training) -> None:
        """Rounds that have ended since."""
        events = read_events(training.job.folder)
        for event in events[self._known :]:
            if event["what"] == "round":
                text = f"round {event['round']}: only the sum of {event['devices']} updates was opened"
                self.journal.service("Training", text)
            elif event["what"] == "round failed":
                text = f"round {event['round']}: too few devices answered, nothing was opened"
                self.journal.service("Training", text)
        self._known = len(events)

    def _hand_out(self, version: int) -> None:
        """Every device asks by itself in a real app; here they are to look now."""
        self.journal.service("Training", f"version {version} signed and promoted")
        self._at(3, f"Devices verify version {version}")
        for person in self.people:
            try:
                person.check_for_update()
            except FedrecError as error:
                self.journal.device(person.name, f"has no new model: {trouble(error)}")
        self._at(len(STAGES), f"Version {version} is in use", running=False)

    def _at(self, stage: int, text: str, *, running: bool = True, failed: bool = False) -> None:
        self.progress = Progress(stage, text, running, failed)
        self.revision += 1


def _report(session: Future[TrainingReport]) -> TrainingReport | None:
    """Of a device, once its session has ended; what went wrong on a device is told by the device."""
    return None if session.exception() is not None else session.result()
