"""The parts of a server as commands: what each is called, how it is started, and where it answers when it is ready.

Out of scope: keeping them running (`supervisor`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fedrec.core.errors import ConfigError
from fedrec_server.network.certificates import Validity, make_service_certificates
from fedrec_server.sites.addresses import Addresses
from fedrec_server.supervision.settings import ServerSettings, SitesSection

CERTS, KEYS, MODELS, JOBS, SITES, DATABASE = "certs", "keys", "models", "jobs", "sites", "devices.db"


@dataclass(frozen=True)
class Part:
    """One process of a server.

    Attributes:
        name: by which it is restarted.
        command: with its arguments.
        port: on loopback or the host's address, where it listens when it is ready; None: ready when it runs.
        host: of the port.
    """

    name: str
    command: tuple[str, ...]
    port: int | None = None
    host: str = "127.0.0.1"


def parts_of(root: Path, settings: ServerSettings) -> list[Part]:
    """The parts of a server, in the order in which they start.

    Args:
        root: the server's folder.
        settings: of it.

    Raises:
        ConfigError: there is no population to serve.
    """
    found: list[Part] = []
    populations = settings.populations or tuple(_populations(root))
    if settings.model_service.enabled:
        if not populations:
            raise ConfigError(
                f"no population has a registry in {root / MODELS}: make one with `fedrec-server keys init "
                f"--population NAME --keys {root / KEYS} --registry {root / MODELS}`, or set model_service.enabled = "
                "false"
            )
        found.append(_model_service(root, settings, populations))
    if settings.device_service.enabled:
        found += [_front_end(root, settings, k) for k in range(settings.device_service.front_ends)]
    if settings.jobs.enabled:
        command = ("jobs", "run", "--root", str(root / JOBS), "--database", database_url(root, settings))
        found.append(Part("jobs", _command(*command)))
    if settings.sites.enabled:
        found += _for_sites(root, settings.sites)
    return found


def database_url(root: Path, settings: ServerSettings) -> str:
    """Of the device service and of jobs."""
    return settings.database.url or f"sqlite:///{(root / DATABASE).absolute()}"


def ensure_certificates(root: Path, settings: ServerSettings) -> bool:
    """Make certificates where there are none; whether those of the services were made.

    Raises:
        ServiceError: they cannot be written.
    """
    if settings.sites.enabled:
        where = Addresses(**settings.sites.model_dump(exclude={"enabled"}))
        where.ensure(root / SITES, settings.certificate_days)
    if (root / CERTS / "ca.crt").exists():
        return False
    make_service_certificates(root / CERTS, settings.public_names, Validity(settings.certificate_days))
    return True


def _model_service(root: Path, settings: ServerSettings, populations: tuple[str, ...]) -> Part:
    section = settings.model_service
    command = ["service", "start", "--registry", str(root / MODELS), "--certs", str(root / CERTS)]
    command += [word for name in populations for word in ("--population", name)]
    command += [
        "--host",
        section.host,
        "--port",
        str(section.port),
        "--devices",
        str(section.expected_devices),
    ]
    if (root / KEYS).is_dir():
        command += ["--keys", str(root / KEYS)]
    return Part("model-service", _command(*command), section.port, _reachable(section.host))


def _front_end(root: Path, settings: ServerSettings, number: int) -> Part:
    section = settings.device_service
    port = section.port + number
    command = ["devices", "start", "--database", database_url(root, settings), "--certs", str(root / CERTS)]
    command += ["--host", section.host, "--port", str(port), "--devices", str(section.expected_devices)]
    if section.connect_port:
        command += ["--connect-port", str(section.connect_port + number)]
    command += [word for origin in section.origins for word in ("--origin", origin)]
    command += [word for verifier in section.admission for word in ("--admission", verifier)]
    command += [word for limit in section.limits for word in ("--limit", limit)]
    name = "device-service" if number == 0 else f"device-service-{number + 1}"
    return Part(name, _command(*command), port, _reachable(section.host))


def _for_sites(root: Path, section: SitesSection) -> list[Part]:
    own = ("--root", str(root / SITES))
    superlink, gateway = _reachable(section.superlink_host), _reachable(section.host)
    return [
        Part("superlink", _command("sites", "superlink", *own), section.superlink_port, superlink),
        Part("gateway", _command("sites", "gateway", *own), section.gateway_port, gateway),
    ]


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "fedrec_server.cli.main", *arguments)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def _populations(root: Path) -> list[str]:
    return sorted(path.parent.name for path in (root / MODELS).glob("*/root.json"))
