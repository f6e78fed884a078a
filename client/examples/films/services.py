"""The model service of the app: the real one on loopback, or the SDK's fake for trying the app without a network.

The service never sees an event: it has signed models, public keys of devices and their encrypted updates. Out of
scope: what a campaign computes and publishes (`federation`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client.testing import FakeService
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_client.updates.transport import Transport
from fedrec_server.network.certificates import make_service_certificates
from fedrec_server.network.grpc_server import Certificates
from fedrec_server.network.limits import Limits
from fedrec_server.operations.campaign_book import CampaignBook
from fedrec_server.operations.campaigns import Campaign
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service
from films.layer import campaign_config, layered
from films.words import NotNowError

POPULATION = "films"
START_SUMMARY = {
    "unit": "none",
    "headline": "Start model: trained on public ratings, no person of this app in it.",
}


class ModelService(Protocol):
    """What the app needs of a service.

    Attributes:
        root: root metadata, to be built into the app.
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

    def campaign(self, devices: int, stop: Callable[[], bool]) -> Campaign:
        """A new one, open for enrolment; it ends when `stop` is true."""
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

    def campaign(self, devices: int, stop: Callable[[], bool]) -> Campaign:
        """See `ModelService`."""
        start = self._registry.open(self._registry.versions()[0]).model
        return Campaign.open(
            self._book,
            self._registry,
            campaign_config(devices),
            self._keys,
            finish=lambda trained, _: layered(start, trained),
            stop=stop,
        )

    def stop(self) -> None:
        """See `ModelService`."""
        self._service.stop()

    def _online_keys(self) -> OnlineKeys:
        """Keys that sign. The offline ones allow them once and are forgotten; an operator keeps them locked away."""
        path = self._folder / "keys"
        if path.exists():
            return OnlineKeys.load(path)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys = OnlineKeys.generate()
        Registry.create(self._folder / "models", POPULATION, OfflineKeys.generate(), keys)
        keys.save(path)
        return keys

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
        self.root = self._fake.trust

    def connect(self) -> Transport:
        """See `ModelService`."""
        return self._fake

    def manifest(self) -> Manifest:
        """See `ModelService`."""
        return self._manifest

    def campaign(self, devices: int, stop: Callable[[], bool]) -> Campaign:
        """See `ModelService`."""
        raise NotNowError("the app was started with --offline: start it without to train together")

    def stop(self) -> None:
        """See `ModelService`."""
        self._fake.end()
