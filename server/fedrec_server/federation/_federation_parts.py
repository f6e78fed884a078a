"""The parts of a federation on one machine: where their files lie and how each is started. Starts nothing."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from fedrec.core.errors import FederationError
from fedrec.core.files import write_json
from fedrec.core.processes import free_ports, program
from fedrec_server.federation.superlink_state import database_of


@dataclass
class Record:
    """What `federation.json` holds, so that any process of the user can go on with a federation.

    Attributes:
        mark: of all its processes.
        nodes: how many SuperNodes.
        superlink_port, gateway_port, node_ports: on 127.0.0.1.
        node_ids: the nodes' ids at Flower.
        pids: process id of each part.
        started: when each part was started, in seconds since 1970.
    """

    mark: str
    nodes: int
    superlink_port: int
    gateway_port: int
    node_ports: list[int]
    node_ids: list[str] = field(default_factory=list)
    pids: dict[str, int] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)

    @classmethod
    def plan(cls, nodes: int) -> Record:
        """A record for a federation that is to be started."""
        superlink, gateway, *others = free_ports(2 + nodes)
        return cls(f"federation-{secrets.token_hex(8)}", nodes, superlink, gateway, others)


@dataclass(frozen=True)
class Parts:
    """Paths and commands of the federation in `folder`.

    Attributes:
        node_program: module that starts a SuperNode and serves its messages.
    """

    node_program: ClassVar[str] = "fedrec_client.node.node_program"

    folder: Path
    record: Record

    @classmethod
    def read(cls, folder: Path) -> Parts:
        """The federation of a folder, as another process left it.

        Raises:
            FederationError: there is none.
        """
        path = folder.resolve() / "federation.json"
        try:
            return cls(path.parent, Record(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise FederationError(
                f"no federation in {folder} ({type(error).__name__}): start one with `fedrec-server federation up`"
            ) from error

    def write(self) -> None:
        """Write the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "federation.json", asdict(self.record))

    @property
    def ca(self) -> Path:
        """Certificate of the private CA."""
        return self.folder / "tls" / "ca.crt"

    def mark(self, part: str) -> str:
        """Mark of a part's processes."""
        return f"{self.record.mark}/{part}"

    def log(self, part: str) -> Path:
        """Log of a part."""
        return self.folder / "logs" / f"{part}.log"

    def home(self, part: str) -> Path:
        """Folder of a part's own files."""
        return self.folder / part

    def node_home(self, k: int) -> Path:
        """Folder of a node: its key, its Flower home and `data`, a link to what it hosts."""
        return self.folder / "nodes" / str(k)

    def superlink(self) -> list[str]:
        """Command of the SuperLink: TLS, node authentication, a database that survives it."""
        tls = self.folder / "tls"
        command = [program("flower-superlink"), "--host", "127.0.0.1"]
        command += ["--port", str(self.record.superlink_port), "--ssl-ca-certfile", str(self.ca)]
        command += ["--ssl-certfile", str(tls / "superlink.pem"), "--ssl-keyfile", str(tls / "superlink.key")]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        return [*command, "--database", str(database_of(self.home("superlink")))]

    def gateway(self) -> list[str]:
        """Command of the gateway in front of the SuperLink."""
        tls = self.folder / "tls"
        command = [
            sys.executable,
            "-m",
            "fedrec_server.federation.gateway",
            "--port",
            str(self.record.gateway_port),
        ]
        command += ["--certificate", str(tls / "gateway.pem"), "--key", str(tls / "gateway.key")]
        return [
            *command,
            "--upstream",
            f"https://127.0.0.1:{self.record.superlink_port}",
            "--ca",
            str(self.ca),
        ]

    def supernode(self, home: Path, port: int) -> list[str]:
        """Command of a SuperNode and of what serves its messages: it is told the gateway's address.

        Args:
            home: the node's own folder, with its `key` and `data`.
            port: of its own API on 127.0.0.1.
        """
        command = [sys.executable, "-P", "-m", self.node_program, "--folder", str(home / "supernode")]
        command += ["--superlink", f"127.0.0.1:{self.record.gateway_port}"]
        command += ["--root-certificates", str(self.ca), "--key", str(home / "key")]
        return [*command, "--port", str(port), "--node-dir", str(home / "data")]

    def node(self, k: int) -> list[str]:
        """Command of node k, kept running by a supervisor."""
        supernode = self.supernode(self.node_home(k), self.record.node_ports[k])
        return [sys.executable, "-P", "-m", "fedrec_server.federation.supervisor", *supernode]
