"""Lets the devices of consenting people train together: one campaign at a time, told step by step.

What an operator's process does; it sees public keys, encrypted updates and their sum. Out of scope: what happens on
a device (`people`), what is computed and published (`layer`), who hands it out (`services`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fedrec.core.errors import FedrecError
from fedrec.wire.manifest import Manifest
from fedrec_client.terms.results import TrainingReport
from fedrec_server.operations.campaigns import Campaign
from films.journal import Journal
from films.people import Person
from films.services import ModelService
from films.words import NotNowError, step, trouble, without_a_model

log = logging.getLogger(__name__)

MIN_DEVICES = 3
#: For all rounds; a session that takes longer ends by itself.
DEADLINE_SECONDS = 240.0
ENROL_SECONDS = 60.0
STAGES = ("Enrol", "Train", "Publish", "Update")


@dataclass
class Progress:
    """Of a campaign, for the page.

    Attributes:
        stage: index of `STAGES` that is under way; len(STAGES): all are done; -1: none was started.
        text: what is happening, in one line.
        running: a campaign is under way.
        failed: the last one was.
    """

    stage: int = -1
    text: str = ""
    running: bool = False
    failed: bool = False


@dataclass
class Together:
    """Lets people train together, one campaign at a time, in the background.

    Attributes:
        service: that opens campaigns.
        people: of the page.
        journal: told every step.
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

    def willing(self) -> list[Person]:
        """Who has agreed and whose device can now."""
        return [person for person in self.people if person.eligible().ok]

    def start(self) -> None:
        """Begin a campaign.

        Raises:
            NotNowError: one is under way, or too few devices are willing.
        """
        with self._lock:
            if self.progress.running:
                raise NotNowError("a campaign is under way: wait until it is done")
            willing = self.willing()
            if len(willing) < MIN_DEVICES:
                raise NotNowError(
                    f"{len(willing)} devices are ready: a sum over fewer than {MIN_DEVICES} would tell too much"
                )
            campaign = self.service.campaign(len(willing), lambda: self._ends)
            self._at(0, "Campaign opened")
            self._thread = threading.Thread(target=self._run, args=(campaign, willing), name="campaign")
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Until the campaign that is under way has ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """End what is under way, for good; within seconds."""
        self._ends = True
        for person in self.people:
            person.client.stop_training()
        self.wait(60)

    def _run(self, campaign: Campaign, willing: list[Person]) -> None:
        self.journal.service("Campaign", f"{campaign.id[:8]} opened for {len(willing)} devices")
        sessions: dict[str, Future[TrainingReport]] = {}
        reports: dict[str, TrainingReport | None] = {}
        try:
            with ThreadPoolExecutor(len(willing)) as pool:
                sessions |= {person.name: pool.submit(person.train, DEADLINE_SECONDS) for person in willing}
                try:
                    made = self._campaign(campaign, len(willing))
                except BaseException:
                    for person in willing:
                        person.client.stop_training()
                    raise
                finally:
                    reports = {name: _report(session) for name, session in sessions.items()}
            self._hand_out(made)
        except FedrecError as error:
            log.info("campaign %s ended without a model: %s", campaign.id, error)  # for who runs the service
            left, enrolled = len(campaign.book.left(campaign.id)), len(campaign.book.roster(campaign.id))
            text = without_a_model(len(willing), left, enrolled, reports)
            self.journal.service("Campaign", text)
            self._at(self.progress.stage, text, running=False, failed=True)
        except Exception as error:  # told on the page, and the next campaign can be tried
            self.journal.service("Campaign", "ended without a model: internal error")
            text = "Something went wrong in this app. There is no new model; the privacy pages say what was spent."
            self._at(self.progress.stage, text, running=False, failed=True)
            raise RuntimeError("a campaign ended in an unexpected way") from error

    def _campaign(self, campaign: Campaign, devices: int) -> Manifest:
        campaign.await_devices(devices, ENROL_SECONDS, on_step=self._step)
        self._at(1, "Roster closed, secure sum begins")
        made = campaign.run(on_step=self._step, on_event=self._event)
        self._at(2, f"Version {made.version} signed and promoted")
        return made

    def _hand_out(self, made: Manifest) -> None:
        """Every device asks by itself in a real app; here they are told to look now."""
        self._at(3, f"Devices verify version {made.version}")
        for person in self.people:
            try:
                person.check_for_update()
            except FedrecError as error:
                self.journal.device(person.name, f"has no new model: {trouble(error)}")
        self._at(len(STAGES), f"Version {made.version} is in use", running=False)

    def _step(self, text: str) -> None:
        self.journal.service("Campaign", text)
        self._at(self.progress.stage, step(text))

    def _event(self, event: dict[str, Any]) -> None:
        """Of the coordinator: how a round ended."""
        number = event.get("round")
        if number is None:
            return
        if event.get("abandoned") or event.get("lost"):
            self._step(f"round {number}: too few devices answered, nothing was opened")
        else:
            self._step(f"round {number}: only the sum of {event.get('nodes')} updates was opened")

    def _at(self, stage: int, text: str, *, running: bool = True, failed: bool = False) -> None:
        self.progress = Progress(stage, text, running, failed)
        self.revision += 1


def _report(session: Future[TrainingReport]) -> TrainingReport | None:
    """Of a device, once its session has ended; what went wrong on a device is told by the device."""
    return None if session.exception() is not None else session.result()
