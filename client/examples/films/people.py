"""One person of the app with a device of their own: a `fedrec_client.Client` with its folder, consent and model.

Everything that the pages do to a person goes through here, and from here to nothing but the SDK. People share a
process because this is an example; they share no data. Out of scope: how it looks (`views`), who
trains (`federation`).
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrec.core.errors import ConsentRequired, DataError, FedrecError
from fedrec.ranking.exploration import Thompson
from fedrec_client import Client, Policy
from fedrec_client.store.base import Receipt
from fedrec_client.store.events import EventType
from fedrec_client.terms.results import Eligibility, ModelInfo, Recommendation, Similar, TrainingReport
from fedrec_client.training.device_service import DeviceService
from fedrec_client.updates.transport import Transport
from films.catalogue import Catalogue, Film
from films.device import (
    CAREFUL,
    CONDITIONS,
    DEMONSTRATION,
    MORE,
    SHOWN,
    TABS,
    VARIETY,
    Change,
    Opinion,
    PretendPlatform,
    Screen,
)
from films.journal import Journal
from films.words import NO_JOB, took_part, trouble


@dataclass
class Person:
    """See the module.

    Attributes:
        number, name: on the page.
        folder: of the device.
        trust: the root metadata that is built into the app.
        connect: makes the connection of a device to the service.
        catalogue: built into the app.
        journal: what happens, for the page.
        revision: grows with everything that the page shows.
        message: what the page says once.
        receipt: of the last deletion.
        update: of the last new model.
        trouble: what went wrong when this device last spoke with the service, in words; empty: nothing.
    """

    number: int
    name: str
    folder: Path
    population: str
    trust: bytes
    connect: Callable[[], Transport]
    connect_training: Callable[[], DeviceService | None]
    catalogue: Catalogue
    journal: Journal
    platform: PretendPlatform = field(default_factory=PretendPlatform)
    screen: Screen = field(default_factory=Screen)
    policy: Policy = DEMONSTRATION
    revision: int = 0
    message: str = ""
    receipt: Receipt | None = None
    update: ModelInfo | None = None
    trouble: str = ""
    change: Change = field(default_factory=Change)
    training: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._client = self._opened()
        self.rec = Recommendation("", (), 0)

    def _opened(self) -> Client:
        return Client.open(
            self.folder,
            population=self.population,
            trust=self.trust,
            server=self.connect(),
            training_server=self.connect_training(),
            platform=self.platform,
            policy=self.policy,
        )

    @property
    def client(self) -> Client:
        """The SDK."""
        return self._client

    def close(self) -> None:
        """The device is switched off."""
        self._client.close()

    # Films

    def rate(self, item: str, stars: int) -> None:
        """One to five stars.

        Raises:
            DataError: no such film or rating.
            ConsentRequired: the person does not want to be remembered.
        """
        film = self._film(item)
        if not 1 <= stars <= 5:
            raise DataError(f"{stars} stars: expected 1 to 5")
        self._keep(EventType.RATING, item, float(stars))
        self.journal.device(self.name, "1 rating kept, sealed; nothing sent")
        self._renew(f"after you rated {film.name}")

    def hide(self, item: str) -> None:
        """Never show a film again."""
        film = self._film(item)
        self._keep(EventType.HIDE, item)
        self.journal.device(self.name, "1 film hidden; nothing sent")
        self._renew(f"after you hid {film.name}")

    def begin_with(self, genre: str) -> None:
        """Rate a handful of well-known films of a genre, for people who are new."""
        films = self.catalogue.taste(genre)
        for film in films:
            self._keep(EventType.RATING, film.id, 5.0)
        self.journal.device(self.name, f"{len(films)} ratings kept, sealed; nothing sent")
        self._renew("after your first ratings")

    def opinions(self) -> list[Opinion]:
        """The last word on each film, the latest first."""
        last = {
            event.item: Opinion(self.catalogue[event.item], round(event.value or 0), event.time)
            for event in self._client.events(types=(EventType.RATING, EventType.HIDE))
            if event.item in self.catalogue
        }
        return sorted(last.values(), key=lambda opinion: -opinion.time)

    def similar(self, item: str, n: int = SHOWN) -> tuple[Similar, ...]:
        """Films like one."""
        return self._client.similar(item, n)

    # What is shown

    def look(self, tab: str) -> None:
        """Another page."""
        if tab not in TABS:
            raise DataError(f"page {tab!r:.20}: expected one of {', '.join(TABS)}")
        with self._lock:
            self.screen.tab, self.screen.like = tab, ""
            self.revision += 1

    def look_alike(self, item: str) -> None:
        """Films like one, in the place of the list."""
        self._film(item)
        with self._lock:
            self.screen.tab, self.screen.like = "list", item
            self.revision += 1

    def search(self, query: str) -> list[Film]:
        """Films by words of their titles; searching stays on the device, too."""
        with self._lock:
            self.screen.query = query[:80]
        return self.catalogue.search(self.screen.query)

    def tune(self, only: str, without: str, variety: str, explores: bool) -> None:
        """What the list should be like."""
        known = {"", *self.catalogue.genres}
        if only not in known or without not in known or variety not in VARIETY:
            raise DataError("a genre or variety that there is not: choose from the list")
        with self._lock:
            self.screen.only, self.screen.without = only, without
            self.screen.variety, self.screen.explores = variety, explores
        self._renew("")

    def lengthen(self) -> None:
        """A longer list."""
        with self._lock:
            self.screen.length = MORE
        self._renew("")

    def refresh(self) -> None:
        """The list as it would be now."""
        self._renew("")

    # Consent, privacy, device

    def consent_to(self, **answers: bool) -> None:
        """Answer some of the three questions."""
        before = self._client.consent
        self._client.set_consent(dataclasses.replace(before, **answers))
        for what, agreed in answers.items():
            said = "agreed to" if agreed else "withdrew from"
            self.journal.device(self.name, f"{said} {_CONSENTS[what]}")
        self._renew("")

    def set_state(self, what: str, state: bool) -> None:
        """Plug in, put down, join a network."""
        if what not in self.platform.states:
            raise DataError(f"state {what!r:.20}: expected one of {', '.join(self.platform.states)}")
        with self._lock:
            self.platform.states[what] = state
            self.revision += 1

    def set_careful(self, careful: bool) -> None:
        """The limits of a real app, or those of this example."""
        if self.training:
            raise DataError("the device is training: wait until it is done")
        with self._lock:
            self._client.close()
            self.policy = CAREFUL if careful else DEMONSTRATION
            self._client = self._opened()
        self.journal.device(
            self.name, f"app limits are now those of {'a real app' if careful else 'this example'}"
        )
        self._renew("")

    def eligible(self) -> Eligibility:
        """Whether the device may train now."""
        return self._client.eligible(CONDITIONS)

    def export(self) -> bytes:
        """Everything that is kept, as JSON lines."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.jsonl"
            self._client.export_data(path)
            self.journal.device(self.name, "all data exported for its owner")
            return path.read_bytes()

    def delete(self) -> None:
        """Everything that is kept, with the key."""
        self.receipt = self._client.delete_data()
        self.journal.device(self.name, f"everything deleted, key destroyed (receipt {self.receipt.id[:8]})")
        with self._lock:
            self.screen = Screen(tab="privacy")
        self._renew("")

    # Model and training

    def check_for_update(self) -> bool:
        """Take a newer model into use; whether there was one.

        Raises:
            FedrecError: what came is refused or nobody answers; the model in use serves on.
        """
        started = time.perf_counter()
        with self._noting_trouble():
            info = self._client.check_for_update()
        if info is None:
            return False
        self.update = info
        how = "as a delta" if info.by_delta else "in full"
        self.journal.device(
            self.name,
            f"version {info.version} fetched {how} ({info.bytes_downloaded:,} bytes), signature and hashes "
            f"verified, in use after {time.perf_counter() - started:.1f} s",
        )
        self._renew(f"with model version {info.version}")
        return True

    def train(self, deadline_seconds: float, on_step: Callable[[str], None] | None = None) -> TrainingReport:
        """Take part in the job that is open; `on_step`: see `Client.train_if_eligible`."""
        self.training = True
        self._shown()
        try:
            with self._noting_trouble():
                report = self._client.train_if_eligible(CONDITIONS, deadline_seconds, on_step=on_step)
        except FedrecError as error:
            self.journal.device(self.name, f"did not train: {trouble(error)}")
            raise
        finally:
            self.training = False
            self._shown()
        if report.reason != NO_JOB:
            self.journal.device(self.name, took_part(report))
        return report

    @property
    def state(self) -> str:
        """Differs whenever what the page shows may differ; a charge in the middle of training included."""
        if not self.training:
            return str(self.revision)
        return f"{self.revision}.{self._client.privacy_report().lifetime.rounds}"

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        try:
            yield
        except FedrecError as error:
            self.trouble = trouble(error)
            raise
        self.trouble = ""

    # Inside

    def _film(self, item: str) -> Film:
        if item not in self.catalogue:
            raise DataError(f"film {item!r:.20}: not in the catalogue")
        return self.catalogue[item]

    def _keep(self, kind: EventType, item: str, value: float | None = None) -> None:
        shown = self.rec.id if any(place.item == item for place in self.rec) else None
        self._client.log_event(kind, item, value=value, rec=shown)

    def _renew(self, cause: str) -> None:
        """Ask for the list anew; with a cause, changes are marked."""
        with self._lock:
            before = tuple(place.item for place in self.rec)
            self.rec = self._client.recommend(self.screen.length, **self._wishes())
            self.change = Change(cause, before if cause else ())
            self._note_impressions(before)
            self.revision += 1
        if cause.startswith("with model"):
            self._tell_change()

    def _wishes(self) -> dict[str, Any]:
        screen = self.screen
        return {
            "allow": [screen.only] if screen.only else [],
            "deny": [screen.without] if screen.without else [],
            "diversity": VARIETY[screen.variety],
            "exploration": Thompson() if screen.explores else None,
        }

    def _note_impressions(self, before: tuple[str, ...]) -> None:
        """What was not on the screen before; kept with place and propensity, on the device."""
        if not self._client.consent.personalize:
            return
        try:
            for place in self.rec:
                if place.item not in before:
                    self._client.log_event(EventType.IMPRESSION, place.item, rec=self.rec.id)
        except ConsentRequired:  # withdrawn a moment ago
            return

    def marks(self) -> dict[str, int | None]:
        """By how many places each film went up with the last change; None: it is new here.

        Films that the person took away do not count: what stood below them has not really moved.
        """
        now = [place.item for place in self.rec]
        if not self.change.before:
            return dict.fromkeys(now, 0)
        gone = {opinion.film.id for opinion in self.opinions()}
        before = [item for item in self.change.before if item not in gone]
        return {
            item: before.index(item) - place if item in before else None for place, item in enumerate(now)
        }

    def _tell_change(self) -> None:
        if not self.change.before:
            self.journal.device(self.name, f"first list made {self.change.cause}, without asking anybody")
            return
        marks = self.marks()
        new = [item for item, step in marks.items() if step is None]
        moved = [item for item, step in marks.items() if step]
        if not new and not moved:
            self.journal.device(self.name, f"{self.change.cause} the list is as before")
            return
        names = ", ".join(self.catalogue[item].name for item in new[:3]) or "none"
        self.journal.device(
            self.name, f"list changed: {len(new)} new ({names}), {len(moved)} moved, of {len(marks)} films"
        )

    def _shown(self) -> None:
        with self._lock:
            self.revision += 1


_CONSENTS = {
    "personalize": "personal recommendations",
    "train": "training together",
    "metrics": "counters with noise",
}
