"""The side of the service: publishes models, hands them out, lets the devices of consenting people train together.

Nothing in here ever sees an event: the service has signed models and public keys, the campaign has encrypted updates
and their sum. What is published is the start model of public data with a layer on top, learned by the devices. Out of
scope: what happens on a device (`people`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedrec.errors import FedrecError, RegistryError
from fedrec.ranking.item_item import DenseWeights, ItemItem
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Selected
from fedrec.ranking.serving import ServingModel
from fedrec.ranking.tables import FloatTable
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import RootKey, RoundKey
from fedrec_client.grpc_transport import GrpcTransport
from fedrec_client.testing import FakeService
from fedrec_client.transport import Transport
from fedrec_server.campaigns import CampaignBook
from fedrec_server.certificates import make_service_certificates
from fedrec_server.registry import Registry
from fedrec_server.service.limits import Limits
from fedrec_server.service.server import Certificates, Service
from fedrec_simulations.campaigns import Campaign
from fedrec_simulations.config import Config, parse_config
from films.catalogue import HISTORY_HALF_LIFE
from films.journal import Journal
from films.people import Person

POPULATION = "films"
MIN_DEVICES = 3
#: For all rounds; a session that takes longer ends by itself.
DEADLINE_SECONDS = 240.0
ENROL_SECONDS = 60.0
#: How much the layer that the devices learned weighs beside the start model.
LAYER_WEIGHT = 0.7
KEY_DAYS = 365
START_SUMMARY = {
    "unit": "none",
    "headline": "Start model: trained on public ratings, no person of this app in it.",
}
STAGES = ("Enrol", "Train", "Publish", "Update")


class ModelService(Protocol):
    """What the app needs of a service.

    Attributes:
        root: public root key, to be built into the app.
        campaigns: it can let devices train.
    """

    root: bytes
    campaigns: bool

    def connect(self) -> Transport:
        """A connection for one device."""
        ...

    def manifest(self) -> Manifest:
        """Of the model that devices are to use."""
        ...

    def campaign(self, devices: int) -> Campaign:
        """A new one, open for enrolment."""
        ...

    def stop(self) -> None:
        """Serve no more."""
        ...


class LoopbackService:
    """The real one: registry on disk, gRPC with certificates of both sides, on this computer only.

    Args:
        folder: for registry, keys, certificates, campaigns; used again by the next start.
        start: model and items, published when the registry is empty.
    """

    campaigns = True

    def __init__(self, folder: Path, start: tuple[ServingModel, Items]) -> None:
        self._folder = folder
        self._key = self._round_key()
        self._registry = Registry(folder / "models", POPULATION)
        self.root = self._registry.public_root
        if not self._registry.aliases.champion:
            files = pack_model(*start, {"statement": START_SUMMARY["headline"]})
            made = self._registry.publish(files, Terms(0, int(time.time()), summary=START_SUMMARY), self._key)
            self._registry.promote(made.version)
        self._book = CampaignBook(folder / "campaigns")
        certs = self._certificates()
        self._service = Service.start(
            [self._registry],
            Certificates(certs / "server.pem", certs / "server.key", certs / "apps.crt"),
            limits=Limits(calls_per_second=200, burst=400),
            campaigns=self._book,
        )

    def connect(self) -> Transport:
        """See `ModelService`; with the certificate of the app."""
        certs = self._folder / "certificates"
        return GrpcTransport(
            f"127.0.0.1:{self._service.port}",
            ca=certs / "ca.crt",
            certificate=certs / "app.pem",
            key=certs / "app.key",
        )

    def manifest(self) -> Manifest:
        """See `ModelService`."""
        return self._registry.manifest(self._registry.aliases.champion)

    def campaign(self, devices: int) -> Campaign:
        """See `ModelService`."""
        made = Campaign.open(self._book, self._registry, campaign_config(devices), self._key)
        start = self._registry.open(self._registry.versions()[0]).model
        return Campaign(
            made.id,
            made.book,
            made.registry,
            made.config,
            made.key,
            lambda trained, _: layered(start, trained),
        )

    def stop(self) -> None:
        """See `ModelService`."""
        self._service.stop()

    def _round_key(self) -> RoundKey:
        """The key that signs. The root key allows it once and is forgotten; an operator keeps it locked away."""
        path = self._folder / "round.pem"
        if path.exists():
            return RoundKey.load(path)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        root, now = RootKey.generate(), time.time()
        key = RoundKey.generate(
            root, POPULATION, serial=1, not_before=now - 60, not_after=now + KEY_DAYS * 86_400
        )
        Registry.create(self._folder / "models", POPULATION, root.public)
        key.save(path)
        return key

    def _certificates(self) -> Path:
        """Fresh ones at every start."""
        folder = self._folder / "certificates"
        shutil.rmtree(folder, ignore_errors=True)
        make_service_certificates(folder)
        return folder


class OfflineService:
    """The fake of `fedrec_client.testing`: real signed models, no network, no training."""

    campaigns = False

    def __init__(self, start: tuple[ServingModel, Items]) -> None:
        now = time.time()
        self._fake = FakeService(POPULATION, clock=now)
        self._manifest = self._fake.publish(*start, clock=now, summary=START_SUMMARY)
        self.root = self._fake.root.public

    def connect(self) -> Transport:
        """See `ModelService`."""
        return self._fake

    def manifest(self) -> Manifest:
        """See `ModelService`."""
        return self._manifest

    def campaign(self, devices: int) -> Campaign:
        """See `ModelService`."""
        raise RegistryError("the app was started with --offline: start it without to train together")

    def stop(self) -> None:
        """See `ModelService`."""
        self._fake.end()


def campaign_config(devices: int) -> Config:
    """What the devices compute, and how they are protected.

    The noise hides nobody among so few: epsilon is stated and charged as it is. With as many people as an app
    has, the same lines with a single-digit epsilon do.
    """
    return parse_config(
        {
            "name": "together",
            "model": {
                "kind": "dp_ease",
                "top_items": 20,
                "count_share": 0.3,
                "histogram_items": 12,
                "history_items": 12,
                "pair_half_life": None,
                "reg": 0.3,
                "cut": 0.8,
                "scoring_half_life": HISTORY_HALF_LIFE,
            },
            "privacy": {
                "unit": "user",
                "trust": "distributed",
                "epsilon": 600.0,
                "delta": 1e-6,
                "clip_norm": 1.0,
                "force": True,
            },
            "federation": {
                "nodes": devices,
                "wait_seconds": 60,
                "deadline_seconds": 60,
                "stage_seconds": 30,
            },
        },
        (),
        "the example app",
    )


def layered(start: ServingModel, trained: ServingModel) -> ServingModel:
    """The start model with what the devices learned on top, in 8 bits.

    Raises:
        RegistryError: either is of another kind than this app publishes.
    """
    if not (isinstance(start, ItemItem) and isinstance(trained, Selected)):
        raise RegistryError(f"a layer of {trained.kind} on {start.kind}: this app knows item-item models")
    layer, places = trained.inner, trained.selected
    if not (isinstance(layer, ItemItem) and isinstance(start.weights, DenseWeights)):
        raise RegistryError("weights that are not dense: this app publishes dense ones")
    k = np.arange(len(places))
    weights = start.weights.table.rows(np.arange(start.n_items)).copy()
    weights[np.ix_(places, places)] += np.float32(LAYER_WEIGHT) * layer.weights.features(k)
    made = ItemItem(DenseWeights(FloatTable(weights)), start.half_life, start.base)
    return made.quantised()


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

    def willing(self) -> list[Person]:
        """Who has agreed and whose device can now."""
        return [person for person in self.people if person.eligible().ok]

    def start(self) -> None:
        """Begin a campaign.

        Raises:
            RegistryError: one is under way, or too few devices are willing.
        """
        with self._lock:
            if self.progress.running:
                raise RegistryError("a campaign is under way: wait until it is done")
            willing = self.willing()
            if len(willing) < MIN_DEVICES:
                raise RegistryError(
                    f"{len(willing)} devices are ready: a sum over fewer than {MIN_DEVICES} would tell too much"
                )
            campaign = self.service.campaign(len(willing))
            self.progress = Progress(0, "Campaign opened", running=True)
            self._thread = threading.Thread(target=self._run, args=(campaign, willing), name="campaign")
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Until the campaign that is under way has ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """End what is under way."""
        for person in self.people:
            person.client.stop_training()
        self.wait(60)

    def _run(self, campaign: Campaign, willing: list[Person]) -> None:
        self.journal.service("Campaign", f"{campaign.id[:8]} opened for {len(willing)} devices")
        try:
            with ThreadPoolExecutor(len(willing)) as pool:
                sessions = [pool.submit(person.train, DEADLINE_SECONDS) for person in willing]
                try:
                    made = self._campaign(campaign, len(willing))
                except BaseException:
                    for person in willing:
                        person.client.stop_training()
                    raise
                finally:
                    _await(sessions)
            self._hand_out(made)
        except FedrecError as error:
            self.journal.service("Campaign", f"ended without a model: {error}")
            self._at(self.progress.stage, str(error), running=False, failed=True)
        except Exception as error:  # told on the page, and the next campaign can be tried
            self.journal.service("Campaign", "ended without a model: internal error")
            self._at(self.progress.stage, "internal error", running=False, failed=True)
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
                self.journal.device(person.name, f"update refused: {error}")
        self._at(len(STAGES), f"Version {made.version} is in use", running=False)

    def _step(self, text: str) -> None:
        self.journal.service("Campaign", text)
        self._at(self.progress.stage, text[:1].upper() + text[1:])

    def _event(self, event: dict[str, Any]) -> None:
        """Of the coordinator: what it says of a round that was summed."""
        number = event.get("round")
        if number is not None:
            self._step(f"round {number}: only the sum of all updates was opened")

    def _at(self, stage: int, text: str, *, running: bool = True, failed: bool = False) -> None:
        self.progress = Progress(stage, text, running, failed)
        self.revision += 1


def _await(sessions: Sequence[Future[Any]]) -> None:
    """Until all have ended; what went wrong on a device is told by the device."""
    for session in sessions:
        session.exception()
