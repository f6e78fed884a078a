"""A federation over two hosts: sites in another network namespace, 1 Mbit/s, 300 ms each way, one cut.

Everything goes through the commands that an operator and a site use; the hosts share nothing but the two files that
are handed over. Devices of a job: `test_devices_on_another_host`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from namespaces import CLI, A, B, Hosts, Programs, inside, two_hosts, until
from site_helpers import ITEMS, table

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.needs("network namespaces")]
#: On a host of its own every port is free.
PORT, SUPERLINK = 9092, 9091
RELAY = f"relay-{PORT}"
SITES = ("amsterdam", "berlin", "cork")
TASK = """
name = "two hosts"
model = {kind = "mf", embedding_size = 4, learning_rate = 0.1}
federation = {rounds = 2, deadline_seconds = 90, stage_seconds = 90, wait_seconds = 300, max_abandoned = 9}
privacy = {unit = "user", trust = "distributed", epsilon = 1000.0, delta = 1e-6, force = true}
"""


class Place(Programs):
    """Two hosts, the operator's folder on A, and each site's on its own."""

    def __init__(self, hosts: Hosts, folder: Path, stack: ExitStack) -> None:
        super().__init__(hosts, folder, stack)
        self.root = folder / "server"

    def site(self, host: str, name: str) -> None:
        """From keys to a node that runs; what is handed over is two files."""
        own = self.folder / f"host-of-{name}"
        self.call(host, "node", "enrol", own, "--name", name, "--users", 4)
        self.call(self.hosts.a, "node", "admit", own / "enrolment.json", "--root", self.root)
        data = table(own / "plays.csv", name)
        package = own / f"{name}.package.json"
        self.keep(host, name, *CLI, "node", "start", own, package, "--data", data)

    def online(self) -> set[str]:
        found = self.call(self.hosts.a, "node", "list", "--root", self.root)["sites"]
        assert isinstance(found, list)
        return {row["site"] for row in found if row["state"] == "online"}


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with two_hosts() as hosts, ExitStack() as stack:
        made = Place(hosts, folder, stack)
        (folder / "task.toml").write_text(TASK)
        (folder / "items.txt").write_text("\n".join(ITEMS))
        ports = ("--gateway-port", PORT, "--superlink-port", SUPERLINK)
        made.call(hosts.a, "sites", "init", "--public-address", A, *ports, "--root", made.root)
        words = ("--items", folder / "items.txt", "--users", 4 * len(SITES), "--root", made.root)
        made.call(hosts.a, "sites", "task", folder / "task.toml", *words)
        yield made


def test_sites_on_another_host_train_over_a_slow_link_that_is_cut(tmp_path: Path) -> None:
    with place(tmp_path) as made:
        hosts = made.hosts
        made.keep(hosts.a, "superlink", *CLI, "sites", "superlink", "--root", made.root)
        made.keep(hosts.a, "gateway", *CLI, "sites", "gateway", "--root", made.root)
        slow = made.relay(hosts.a, A, PORT)
        until(lambda: _answers(made), "SuperLink did not start")
        for name in SITES:
            made.site(hosts.b if name == "berlin" else hosts.a, name)
        until(lambda: made.online() == set(SITES), "not all sites came")

        running = made.keep(hosts.a, "run", *CLI, "sites", "run", "--root", made.root)
        events = next((made.root / "runs").iterdir()) / "coordinator" / "events.jsonl"
        until(lambda: events.exists() and len(events.read_text().splitlines()) >= 1, "no round came")
        os.kill(slow.pid, signal.SIGUSR1)
        until(lambda: running.poll() is not None, "the run did not end")
        assert running.returncode == 0, made.log("run")
        rounds = [json.loads(line) for line in events.read_text().splitlines()]
        # A round whose questions were on the line is made again; one whose shares were is lost, and says so.
        ended = [each for each in rounds if not each.get("abandoned")]
        assert [each["round"] for each in ended] == [1, 2], rounds
        assert all(each["nodes"] == len(SITES) for each in ended if not each.get("lost")), rounds
        assert not ended[0].get("lost"), rounds
        assert "cut " in made.log(RELAY) and f"ended {B} " in made.log(RELAY)

        _renew(made, slow.pid)


def _renew(made: Place, slow: int) -> None:
    """New certificates, and every connection cut: sites come back by themselves, with what they have."""
    before = (made.root / "tls" / "gateway.pem").read_bytes()
    made.call(made.hosts.a, "certs", "renew", made.root / "tls")
    assert (made.root / "tls" / "gateway.pem").read_bytes() != before
    time.sleep(3.0)  # the gateway looks once a second
    os.kill(slow, signal.SIGUSR1)

    def came_back() -> bool:
        lines = [line.split() for line in made.log(RELAY).splitlines() if line.startswith(f"ended {B} ")]
        # Of connections that began after the second cut; calls are more than a handshake.
        return any(int(cuts) == 2 and min(int(there), int(back)) > 1500 for _, _, cuts, there, back in lines)

    until(came_back, made.log(RELAY))
    assert made.online() == set(SITES)


def _answers(made: Place) -> bool:
    found = subprocess.run(
        inside(made.hosts.a, *CLI, "node", "list", "--root", str(made.root), "--json"),
        capture_output=True,
        check=False,
    )
    return found.returncode == 0
