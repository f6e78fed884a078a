"""`server.toml`: every address, port and name of a server, with the values of a server on this computer alone.

Out of scope: the commands that follow from it (`parts`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedrec.core.errors import ConfigError
from fedrec_server.operations.configuration import override, parse, read_toml
from fedrec_server.operations.sections import Section

FILE = "server.toml"
#: Written by the first `fedrec-server up`.
TEMPLATE = """\
# A server of fedrec; every value is the usual one. Restart a part after a change: fedrec-server restart PART

populations = []                # whose models are served; [] means all that have a registry in models/
public_names = []               # names and addresses by which devices know this server, for its certificates
certificate_days = 90.0

[model_service]
enabled = true
host = "127.0.0.1"              # the address to listen on; 0.0.0.0 for all
port = 8443
expected_devices = 1000         # paces check-ins

[device_service]
enabled = true
host = "127.0.0.1"
port = 8444                     # of the first front end; each further one takes the next
front_ends = 1
connect_port = 0                # for browsers; 0: not served
origins = []                    # of pages whose scripts may call
admission = []                  # who may join: "token=KEYFILE", "attested=AUTHORITY"; []: every device of the app
expected_devices = 1000
limits = []                     # "name=value", see docs/reference/device-service.md

[jobs]
enabled = true

[sites]
enabled = false                 # SuperLink and gateway for sites, in the folder sites/
public_address = "localhost"    # by which sites reach the gateway
host = "127.0.0.1"              # the gateway's address to listen on
gateway_port = 9092
superlink_host = "127.0.0.1"    # only the operator may reach it
superlink_port = 9091
names = []                      # more names in certificates

[database]
url = ""                        # empty: SQLite in this folder; postgresql://USER:PASSWORD@HOST/NAME for several hosts
"""


class ModelServiceSection(Section):
    """The model service.

    Attributes:
        enabled: it runs.
        host, port: to listen on.
        expected_devices: about how many check in; paces them.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=8443, ge=1, le=65535)
    expected_devices: int = Field(default=1000, ge=1)


class DeviceServiceSection(Section):
    """Front ends of the device service.

    Attributes:
        enabled: they run.
        host: to listen on.
        port: of the first one; each further one takes the next.
        front_ends: how many.
        connect_port: for browsers, of the first one; 0: not served.
        origins: of pages whose scripts may call.
        admission: who may join, as `fedrec-server devices start --admission` takes it.
        expected_devices: about how many check in.
        limits: as `--limit` takes them.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=8444, ge=1, le=65535)
    front_ends: int = Field(default=1, ge=1, le=64)
    connect_port: int = Field(default=0, ge=0, le=65535)
    origins: tuple[str, ...] = ()
    admission: tuple[str, ...] = ()
    expected_devices: int = Field(default=1000, ge=1)
    limits: tuple[str, ...] = ()


class JobsSection(Section):
    """The job runner; `enabled`: it runs."""

    enabled: bool = True


class SitesSection(Section):
    """SuperLink and gateway for sites; see `fedrec_server.sites.addresses`.

    Attributes:
        enabled: they run.
        public_address: by which sites reach the gateway.
        host, gateway_port: on which it listens.
        superlink_host, superlink_port: on which SuperLink listens, for the operator alone.
        names: more names in certificates.
    """

    enabled: bool = False
    public_address: str = "localhost"
    host: str = "127.0.0.1"
    gateway_port: int = Field(default=9092, ge=1, le=65535)
    superlink_host: str = "127.0.0.1"
    superlink_port: int = Field(default=9091, ge=1, le=65535)
    names: tuple[str, ...] = ()


class DatabaseSection(Section):
    """The database of the device service and of jobs; `url` empty: SQLite in the server's folder."""

    url: str = ""


class ServerSettings(Section):
    """A server.

    Attributes:
        populations: whose models are served; empty: all that have a registry.
        public_names: names and addresses by which devices know the server.
        certificate_days: how long certificates hold that `up` makes.
        model_service, device_service, jobs, sites, database: parts.
    """

    populations: tuple[str, ...] = ()
    public_names: tuple[str, ...] = ()
    certificate_days: float = Field(default=90.0, gt=0)
    model_service: ModelServiceSection = ModelServiceSection()
    device_service: DeviceServiceSection = DeviceServiceSection()
    jobs: JobsSection = JobsSection()
    sites: SitesSection = SitesSection()
    database: DatabaseSection = DatabaseSection()


def read_settings(root: Path, overrides: tuple[str, ...] = ()) -> ServerSettings:
    """The settings of a server's folder; the file is written with the usual values when it is missing.

    Raises:
        ConfigError: the file cannot be read or written, or a value is wrong; the message lists all problems.
    """
    path = root / FILE
    if not path.exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.write_text(TEMPLATE)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror}): give a folder of your own"
            ) from error
    return parse(ServerSettings, override(read_toml(path), overrides), (), str(path))
