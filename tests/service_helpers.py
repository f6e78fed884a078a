"""A registry with champions, certificates and real services on loopback, for tests of the model service."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from wire_helpers import POPULATION, PRIVACY, factors, items

from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.wire.layout import hashed_name, model_target
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_client.updates.transport import CheckIn
from fedrec_server.network.certificates import make_service_certificates
from fedrec_server.network.grpc_server import Certificates
from fedrec_server.network.limits import Limits
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service

NOW = time.time()
REPORT = "cd" * 16
NODE_KEY = "ecdsa-sha2-nistp384 " + "A" * 120
#: Tests ask faster than devices.
QUICK = Limits(
    calls_per_second=1e6,
    burst=10**6,
    app_calls_per_second=1e6,
    app_burst=10**6,
    opened_per_second=1e6,
    opened_burst=10**6,
)


@dataclass
class Place:
    """A registry, the keys that publish there, certificates, and what apps pin."""

    registry: Registry
    keys: OnlineKeys
    certificates: Path

    @classmethod
    def make(cls, folder: Path, certificates: Path | None = None, versions: int = 1) -> Place:
        keys = OnlineKeys.generate()
        registry = Registry.create(folder / "models", POPULATION, OfflineKeys.generate(), keys)
        made = cls(registry, keys, folder / "tls")
        if certificates is None:
            make_service_certificates(made.certificates)
        else:
            made.certificates = certificates
        for seed in range(versions):
            made.publish(factors(seed=seed))
        return made

    def publish(self, model: ServingModel, known: Items | None = None) -> int:
        version = self.add(model, known)
        self.registry.promote(version, self.keys)
        return version

    def add(self, model: ServingModel, known: Items | None = None) -> int:
        files = pack_model(model, known or items(), PRIVACY)
        return self.registry.publish(files, Terms(0, int(NOW)), self.keys).version

    def fetched_as(self, version: int, name: str) -> str:
        """Path under which devices fetch a file of a version."""
        sha256 = self.registry.hashes(self.registry.manifest(version))[name]
        return "targets/" + hashed_name(sha256, model_target(POPULATION, version, name))

    def start(self, limits: Limits = QUICK) -> Service:
        files = (self.certificates / name for name in ("server.pem", "server.key", "apps.crt"))
        return Service.start([self.registry], Certificates(*files), limits=limits)

    def connect(self, service: Service, app: Path | None = None) -> GrpcTransport:
        folder = app or self.certificates
        return GrpcTransport(
            f"127.0.0.1:{service.port}",
            ca=self.certificates / "ca.crt",
            certificate=folder / "app.pem",
            key=folder / "app.key",
        )

    def channel(self, service: Service, *options: tuple[str, Any], **more: Any) -> grpc.Channel:
        """Without our transport's manners."""
        read = [(self.certificates / name).read_bytes() for name in ("ca.crt", "app.key", "app.pem")]
        credentials = grpc.ssl_channel_credentials(*read)
        return grpc.secure_channel(f"127.0.0.1:{service.port}", credentials, options, **more)

    def context(self) -> ssl.SSLContext:
        """For sockets that speak HTTP/2 by hand."""
        made = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
        made.load_cert_chain(self.certificates / "app.pem", self.certificates / "app.key")
        made.set_alpn_protocols(["h2"])
        return made


def check_in(population: str = POPULATION, version: str = "0.1.0") -> CheckIn:
    return CheckIn(population, version, 0)


def limits(**changes: Any) -> Limits:
    """Quick ones but for what a test is about."""
    return replace(QUICK, **changes)


def raw(channel: grpc.Channel, method: str, kind: str = "unary_unary") -> Any:
    """A method that takes and gives bytes."""
    return getattr(channel, kind)(f"/fedrec.v1.ModelService/{method}", lambda b: b, lambda b: b)
