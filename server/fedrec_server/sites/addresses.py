"""Where SuperLink and gateway of a server for sites listen, and by which names sites know it.

    ROOT/sites.json    written by `fedrec-server sites init`
    ROOT/tls/          certificates of both; see `fedrec_server.network.certificates`

Out of scope: starting them (`server`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedrec.core.errors import ConfigError, RunError
from fedrec.core.files import private_folder, write_json
from fedrec.wire.site_files import check_address
from fedrec_server.network.certificates import Validity, make_certificates, renew_certificates

FILE = "sites.json"
SERVERS = ("superlink", "gateway")


@dataclass(frozen=True)
class Addresses:
    """See the module's text.

    Attributes:
        public_address: name or address by which sites reach the gateway.
        host: on which the gateway listens.
        gateway_port, superlink_port: where they listen.
        superlink_host: on which SuperLink listens; only the operator may reach it, since its control API knows no
            password.
        names: further names and addresses for the certificates.
    """

    public_address: str = "localhost"
    host: str = "127.0.0.1"
    gateway_port: int = 9092
    superlink_port: int = 9091
    superlink_host: str = "127.0.0.1"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_address(self.gateway)
        for port in (self.gateway_port, self.superlink_port):
            if not 0 < port < 65536:
                raise ConfigError(f"port {port}: expected 1 to 65535; sites and restarts need a fixed one")
        if self.gateway_port == self.superlink_port and self.host == self.superlink_host:
            raise ConfigError(f"SuperLink and gateway have the same port {self.gateway_port}: use two")

    @property
    def gateway(self) -> str:
        """Host and port as sites are given them."""
        host = f"[{self.public_address}]" if ":" in self.public_address else self.public_address
        return f"{host}:{self.gateway_port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the certificates beside localhost."""
        anywhere = ("", "0.0.0.0", "::", "127.0.0.1", "localhost")
        given = (self.public_address, self.host, self.superlink_host, *self.names)
        return tuple(dict.fromkeys(each for each in given if each not in anywhere))

    @property
    def superlink(self) -> str:
        """Host and port of SuperLink, for the operator."""
        return f"{'127.0.0.1' if self.superlink_host == '0.0.0.0' else self.superlink_host}:{self.superlink_port}"

    def create(self, root: Path, days: float) -> None:
        """Write the file and make certificates.

        Raises:
            RunError: there are some already.
        """
        if (root / FILE).exists():
            raise RunError(f"{root / FILE} exists: change it there; `fedrec-server certs renew` adds names")
        private_folder(root)
        make_certificates(root / "tls", SERVERS, self.hosts, Validity(days))
        write_json(root / FILE, asdict(self))

    def ensure(self, root: Path, days: float) -> bool:
        """Write the file, and make or renew certificates if it is new or has changed; whether it was or had.

        Raises:
            ServiceError: new names need a renewal, and the CA's key is not there.
        """
        if not (root / FILE).exists():
            self.create(root, days)
            return True
        if Addresses.read(root) == self:
            return False
        renew_certificates(root / "tls", self.hosts, Validity(days))
        write_json(root / FILE, asdict(self))
        return True

    @classmethod
    def read(cls, root: Path) -> Addresses:
        """Of a server.

        Raises:
            RunError: there are none, or the file cannot be read.
        """
        try:
            plain = json.loads((root / FILE).read_text())
            return cls(**plain | {"names": tuple(plain.get("names", ()))})
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{root / FILE} cannot be read ({error}): make one with `fedrec-server sites init`"
            ) from error
