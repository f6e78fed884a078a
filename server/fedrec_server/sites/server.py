"""The operator's side of a federation of sites: its parts as commands, admitted sites, and runs over them.

    ROOT/superlink/          SuperLink's database; ROOT/operator/: settings of the `flwr` command
    ROOT/admitted/<name>/    enrolment.json, key.pub, and flower.json with the node's id at Flower
    ROOT/runs/<run>/         coordinator/ and logs of a run; ROOT/current names the run of new packages

Each part is a command that runs in the foreground, for a supervisor. Out of scope: the sites' side
(`fedrec_client.node.site`), supervising.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.core.errors import FederationError, RunError
from fedrec.core.files import atomic_write, private_folder, write_json
from fedrec.core.processes import flower_environment, program
from fedrec.wire.site_files import SiteEnrolment, SitePackage, check_name
from fedrec_server.federation.flower_cli import FINISHED, FlowerCli
from fedrec_server.federation.flower_run import FlowerRun
from fedrec_server.federation.launch import Launch
from fedrec_server.federation.run_files import app_folder
from fedrec_server.federation.site_cohorts import write_sites
from fedrec_server.federation.superlink_state import database_of, drop_deleted
from fedrec_server.rounds.cohorts import Joined
from fedrec_server.sites.addresses import Addresses
from fedrec_server.sites.run import read_node, read_run

Event = dict[str, Any]
LEAVE_SECONDS = 20.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Admitted:
    """A site that may connect.

    Attributes:
        enrolment: what it said; the operator vouches for its users.
        node_id: at Flower.
        since: seconds since 1970.
    """

    enrolment: SiteEnrolment
    node_id: str
    since: float


class SiteServer:
    """See the module's text.

    Args:
        root: of the server.

    Raises:
        RunError: there is no server.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.addresses = root.resolve(), Addresses.read(root)
        self.cli = FlowerCli(self.root / "operator")

    # Parts -----------------------------------------------------------------------------------------------

    def superlink(self) -> tuple[list[str], dict[str, str]]:
        """Command and environment of SuperLink: TLS, node keys, a database that survives it."""
        home, tls, where = self.root / "superlink", self.root / "tls", self.addresses
        private_folder(home)
        command = [
            program("flower-superlink"),
            "--host",
            where.superlink_host,
            "--port",
            str(where.superlink_port),
        ]
        command += ["--ssl-ca-certfile", str(tls / "ca.crt"), "--ssl-certfile", str(tls / "superlink.pem")]
        command += ["--ssl-keyfile", str(tls / "superlink.key"), "--database", str(database_of(home))]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        return command, flower_environment(home / "flower")

    def gateway(self) -> tuple[list[str], dict[str, str]]:
        """Command and environment of the gateway, the only address that sites are given."""
        tls, where = self.root / "tls", self.addresses
        command = [sys.executable, "-m", "fedrec_server.federation.gateway"]
        command += ["--host", where.host, "--port", str(where.gateway_port)]
        command += ["--certificate", str(tls / "gateway.pem"), "--key", str(tls / "gateway.key")]
        command += ["--upstream", f"https://{where.superlink}", "--ca", str(tls / "ca.crt")]
        return command, dict(os.environ)

    # Sites -----------------------------------------------------------------------------------------------

    def admit(self, enrolment: SiteEnrolment) -> SitePackage:
        """Let a site in; the operator vouches for its users. Admitted again, it gets the package of the current run.

        Raises:
            RunError: another site has its name or its keys, or there is no run yet.
            FederationError: SuperLink does not answer.
        """
        package = self.package(enrolment.name)
        for known in self.admitted():
            other = known.enrolment
            if other == enrolment:
                return package
            if (
                other.name == enrolment.name
                or enrolment.node_key == other.node_key
                or enrolment.identity == other.identity
            ):
                raise RunError(
                    f"site {other.name} is admitted with the same name or key: remove it first with "
                    f"`fedrec-server node remove {other.name}`"
                )
        self._expect_room(enrolment)
        folder = self._folder(enrolment.name)
        private_folder(folder)
        atomic_write(folder / "key.pub", enrolment.node_key.encode())
        node_id = self._flower().register(folder / "key.pub", enrolment.name)
        enrolment.write(folder / "enrolment.json")
        write_json(folder / "flower.json", {"node_id": node_id, "since": time.time()})
        self._tell_coordinator(here=enrolment.name)
        return package

    def _expect_room(self, enrolment: SiteEnrolment) -> None:
        """The noise and the integers of the run are sized for its users."""
        planned = read_node(self.current())[2]
        together = enrolment.users + sum(each.enrolment.users for each in self.admitted())
        if together > planned:
            raise RunError(
                f"{together} users with site {enrolment.name}: the run was planned for {planned}; make a new one "
                f"with `fedrec-server sites task --users {together}`"
            )

    def package(self, name: str) -> SitePackage:
        """Of the current run, for a site.

        Raises:
            RunError: there is no run.
        """
        run = self.current()
        node, items, _ = read_node(run)
        ca = (self.root / "tls" / "ca.crt").read_text()
        return SitePackage(name, self.addresses.gateway, ca, run.name, node, tuple(items))

    def remove(self, name: str) -> None:
        """Refuse a site from now on; what it was part of stays.

        Raises:
            RunError: there is no such site.
        """
        found = [each for each in self.admitted() if each.enrolment.name == name]
        if not found:
            known = ", ".join(each.enrolment.name for each in self.admitted()) or "none"
            raise RunError(f"site {name!r:.80} is not admitted: those that are: {known}")
        self._flower().unregister(found[0].node_id)
        shutil.rmtree(self._folder(name))
        self._tell_coordinator(gone=name)

    def admitted(self) -> list[Admitted]:
        """All sites that may connect, by name."""
        return list(self._admitted())

    def status(self) -> dict[str, str]:
        """What Flower says of each site: "online" or another word."""
        known = self._flower().node_status()
        return {
            each.enrolment.name: known[each.node_id].status if each.node_id in known else "unknown"
            for each in self.admitted()
        }

    # Runs ------------------------------------------------------------------------------------------------

    def current(self) -> Path:
        """Folder of the run that new packages are for.

        Raises:
            RunError: there is none.
        """
        try:
            return read_run(self.root)
        except OSError as error:
            raise RunError(
                f"{self.root} has no run yet: make its terms with `fedrec-server sites task TASK`"
            ) from error

    def run_and_wait(
        self,
        *,
        wait_seconds: float,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Run, or resume, the current run until it ends; whether it finished all rounds.

        Raises:
            FedrecError: whatever ended the coordinator.
        """
        run, cli = self.current(), self._flower()
        self._tell_coordinator()
        for run_id, status in cli.run_status().items():
            if not status.startswith(FINISHED):
                cli.stop_run(run_id)
        started = FlowerRun.start(
            cli,
            app_folder(),
            run,
            len(self.admitted()),
            mark=f"sites-{os.getpid()}",
            wait_seconds=wait_seconds,
        )
        finished = started.wait(on_event=on_event, stop=stop)
        self._await_leaving(cli)
        drop_deleted(database_of(self.root / "superlink"))
        return finished

    def _await_leaving(self, cli: FlowerCli) -> None:
        """The coordinator has said its last word; Flower's process of it ends soon after."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while any(not status.startswith(FINISHED) for status in cli.run_status().values()):
            if time.monotonic() > deadline:
                raise FederationError("Flower's process of the run did not end: restart SuperLink")
            time.sleep(POLL_SECONDS)

    def _flower(self) -> FlowerCli:
        self.cli.write_config(self.addresses.superlink, self.root / "tls" / "ca.crt")
        return self.cli

    def _folder(self, name: str) -> Path:
        check_name(name)
        return self.root / "admitted" / name

    def _admitted(self) -> Iterator[Admitted]:
        for path in sorted((self.root / "admitted").glob("*/flower.json")):
            found = json.loads(path.read_text())
            yield Admitted(
                SiteEnrolment.read(path.parent / "enrolment.json"), found["node_id"], found["since"]
            )

    def _tell_coordinator(self, here: str = "", gone: str = "") -> None:
        """Who is admitted, for its next start; it waits for no answer of a removed site from now on."""
        launch = Launch(self.current() / "coordinator")
        if here or gone:
            launch.note_left((launch.left() | {gone}) - {here, ""})
        sites = [each.enrolment for each in self.admitted()]
        joined = [Joined(each.name, bytes.fromhex(each.identity), each.users) for each in sites]
        write_sites(launch.folder, joined)
