"""The servers of the app: the real ones on loopback, or the SDK's fake for trying the app without a network.

They never see an event: they have signed models, public keys of devices and their encrypted updates. Out of scope:
what is computed and published (`layer`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client.testing import FakeService
from fedrec_client.training.device_service import DeviceService
from fedrec_client.training.grpc_devices import GrpcDeviceService
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_client.updates.transport import Transport
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.server import FrontEnd, Listening
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.jobs.database_offers import DatabaseOffers
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.offers import Offer
from fedrec_server.jobs.preparation import new_job
from fedrec_server.jobs.work import Worker
from fedrec_server.network.certificates import make_service_certificates
from fedrec_server.network.grpc_server import Certificates
from fedrec_server.network.limits import Limits
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service
from films.layer import job_specification
from films.words import NotNowError

POPULATION = "films"
#: How often front end and devices look, where a few devices share one computer.
LOOK_SECONDS = 0.1
#: For a device that does what the others wait for.
HOLD_SECONDS = 5.0
START_SUMMARY = {
    "unit": "none",
    "headline": "Start model: trained on public ratings, no person of this app in it.",
}


@dataclass
class Training:
    """A job of this app: what its worker does, in the process of the app.

    Attributes:
        job: on disk.
        state: of the device service.
        offered: devices can join from now on.
    """

    job: Job
    state: State
    offered: threading.Event = field(default_factory=threading.Event)

    @property
    def id(self) -> str:
        """Under which devices know it, and their privacy pages name it."""
        return self.job.offer(self.job.record().run)

    def work(self, stop: Callable[[], bool]) -> int:
        """Train with the devices and publish; the version, or 0 where there is none. The job is over then.

        Args:
            stop: whether to give up, asked several times a second while it trains.
        """
        training = "running"

        def over() -> bool:
            return self.job.record().state == training and stop()

        try:
            Worker(self.job, _Telling(self.state, self.offered), stop=over).work()
        finally:
            if (record := self.job.record()).state == training:
                self.job.abort()
                DatabaseOffers(self.state).end(self.job.offer(record.run), "aborted")
        return record.version


class _Telling(DatabaseOffers):
    """Says when devices can join."""

    def __init__(self, state: State, offered: threading.Event) -> None:
        super().__init__(state)
        self._offered = offered

    def make(self, offer: Offer) -> None:
        super().make(offer)
        self._offered.set()


class ModelService(Protocol):
    """What the app needs of its servers.

    Attributes:
        root: root metadata, to be built into the app.
        trains: devices can train together.
    """

    root: bytes
    trains: bool

    def connect(self) -> Transport:
        """A connection of one device for models."""
        ...

    def connect_training(self) -> DeviceService | None:
        """A connection of one device for training; None: there is none."""
        ...

    def manifest(self) -> Manifest:
        """Of the model that devices are to use."""
        ...

    def training(self, devices: int, join_seconds: float) -> Training:
        """A new job, for which devices are waited for so long."""
        ...

    def stop(self) -> None:
        """Serve no more."""
        ...


class LoopbackService:
    """The real one: registry on disk, gRPC with certificates of both sides, on this computer only.

    Args:
        folder: for registry, keys, certificates, jobs; used again by the next start.
        start: model and items, published when the registry is empty.
    """

    trains = True

    def __init__(self, folder: Path, start: tuple[ServingModel, Items]) -> None:
        self._folder = folder
        self._keys = self._online_keys()
        self._registry = Registry(folder / "models", POPULATION)
        self.root = self._registry.pinned
        if not self._registry.aliases.champion:
            files = pack_model(*start, {"statement": START_SUMMARY["headline"]})
            made = self._registry.publish(
                files, Terms(0, int(time.time()), summary=START_SUMMARY), self._keys
            )
            self._registry.promote(made.version, self._keys)
        self._registry.renew(self._keys)
        self._end_what_was_cut_off()
        own = self._certificates()
        certs = Certificates(own / "server.pem", own / "server.key", own / "apps.crt")
        self._service = Service.start([self._registry], certs, limits=Limits(calls_per_second=200, burst=400))
        self._state = open_state(f"sqlite:///{folder / 'devices.db'}")
        self._front = FrontEnd(self._state, Listening(certs), limits=_limits())

    def connect(self) -> Transport:
        """See `ModelService`."""
        return GrpcTransport(f"127.0.0.1:{self._service.port}", **self._as_app())

    def connect_training(self) -> DeviceService:
        """See `ModelService`."""
        return GrpcDeviceService(f"127.0.0.1:{self._front.port}", **self._as_app())

    def manifest(self) -> Manifest:
        """See `ModelService`."""
        return self._registry.manifest(self._registry.aliases.champion)

    def training(self, devices: int, join_seconds: float) -> Training:
        """See `ModelService`."""
        job = new_job(
            self._folder / "jobs",
            job_specification(devices, join_seconds),
            POPULATION,
            registry=self._folder / "models",
            keys=self._folder / "keys",
        )
        job.start()
        return Training(job, self._state)

    def stop(self) -> None:
        """See `ModelService`."""
        self._front.stop()
        self._state.close()
        self._service.stop()

    def _as_app(self) -> dict[str, Path]:
        """The certificate that the app has of its makers."""
        certs = self._folder / "certificates"
        return {"ca": certs / "ca.crt", "certificate": certs / "app.pem", "key": certs / "app.key"}

    def _end_what_was_cut_off(self) -> None:
        """Jobs of an app that was killed: their devices are gone."""
        for job in Job.folders(self._folder / "jobs"):
            if job.record().state == "running":
                job.abort()

    def _online_keys(self) -> OnlineKeys:
        """Keys that sign. The offline ones allow them once and are forgotten; an operator keeps them locked away."""
        folder = KeyFolder(self._folder / "keys", POPULATION).online_folder
        if folder.exists():
            return OnlineKeys.load(folder)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys = OnlineKeys.generate()
        Registry.create(self._folder / "models", POPULATION, OfflineKeys.generate(), keys)
        keys.save(folder)
        return keys

    def _certificates(self) -> Path:
        """Fresh ones at every start."""
        folder = self._folder / "certificates"
        shutil.rmtree(folder, ignore_errors=True)
        make_service_certificates(folder)
        return folder


class OfflineService:
    """The fake of `fedrec_client.testing`: real signed models, no network, no training."""

    trains = False

    def __init__(self, start: tuple[ServingModel, Items]) -> None:
        now = time.time()
        self._fake = FakeService(POPULATION, clock=now)
        self._manifest = self._fake.publish(*start, clock=now, summary=START_SUMMARY)
        self.root = self._fake.trust

    def connect(self) -> Transport:
        """See `ModelService`."""
        return self._fake

    def manifest(self) -> Manifest:
        """See `ModelService`."""
        return self._manifest

    def connect_training(self) -> None:
        """See `ModelService`."""

    def training(self, devices: int, join_seconds: float) -> Training:
        """See `ModelService`."""
        raise NotNowError("the app was started with --offline: start it without to train together")

    def stop(self) -> None:
        """See `ModelService`."""
        self._fake.end()


def _limits() -> DeviceLimits:
    """Of a front end for the few devices of one computer, which nothing has to be spared."""
    limits = DeviceLimits()
    network = replace(limits.network, expected_devices=1, min_retry_seconds=LOOK_SECONDS)
    return replace(
        limits,
        network=network,
        hold_seconds=HOLD_SECONDS,
        poll_seconds=LOOK_SECONDS,
        retry_seconds=LOOK_SECONDS,
        soon_seconds=LOOK_SECONDS,
    )
