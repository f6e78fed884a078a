"""A federation over two hosts: sites in another network namespace, 1 Mbit/s, 300 ms each way, one cut.

Everything goes through the commands that an operator and a site use; the hosts share nothing but the two files that
are handed over. Jobs of devices join here: start a device service in `hosts.a` and devices in `hosts.b`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from namespaces import A, B, Hosts, inside, relay, two_hosts
from site_helpers import ITEMS, table

from fedrec.core.processes import cut, start

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.needs("network namespaces")]
CLI = (sys.executable, "-m", "fedrec_server.cli.main")
#: On a host of its own every port is free.
PORT, SUPERLINK = 9092, 9091
SITES = ("amsterdam", "berlin", "cork")
TASK = """
name = "two hosts"
model = {kind = "mf", embedding_size = 4, learning_rate = 0.1}
federation = {rounds = 2, deadline_seconds = 240, stage_seconds = 240}
privacy = {unit = "user", trust = "distributed", epsilon = 1000.0, delta = 1e-6, force = true}
"""
PATIENT_SECONDS = 240.0


class Place:
    """Two hosts, the operator's folder on A, and each site's on its own."""

    def __init__(self, hosts: Hosts, folder: Path, stack: ExitStack) -> None:
        self.hosts, self.folder, self._stack = hosts, folder, stack
        self.root = folder / "server"

    def call(self, host: str, *words: object) -> dict[str, object]:
        """A command's answer."""
        command = inside(host, *CLI, *map(str, words), "--json")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENT_SECONDS * 2, check=False, cwd=self.folder
        )
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return dict(json.loads(done.stdout))

    def keep(self, host: str, name: str, *command: object) -> subprocess.Popen[bytes]:
        """A process that runs until the end."""
        mark = f"two-hosts-{os.getpid()}/{name}"
        log = self.folder / f"{name}.log"
        child = start(inside(host, *map(str, command)), mark=mark, env=os.environ, log=log)
        self._stack.callback(cut, mark, [child.pid])
        return child

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

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


def until(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(1.0)


def test_sites_on_another_host_train_over_a_slow_link_that_is_cut(tmp_path: Path) -> None:
    with place(tmp_path) as made:
        hosts = made.hosts
        made.keep(hosts.a, "superlink", *CLI, "sites", "superlink", "--root", made.root)
        made.keep(hosts.a, "gateway", *CLI, "sites", "gateway", "--root", made.root)
        slow = made.keep(hosts.a, "relay", *relay(A, PORT, PORT))
        until(lambda: "ready" in made.log("relay"), "the relay did not start")
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
        finished = [each for each in rounds if not each.get("abandoned") and not each.get("lost")]
        assert [each["round"] for each in finished] == [1, 2], rounds
        assert all(each["nodes"] == len(SITES) for each in finished), rounds
        assert "cut " in made.log("relay") and f"ended {B} " in made.log("relay")

        _renew(made, slow.pid)


def _renew(made: Place, slow: int) -> None:
    """New certificates, and every connection cut: sites come back by themselves, with what they have."""
    before = (made.root / "tls" / "gateway.pem").read_bytes()
    made.call(made.hosts.a, "certs", "renew", made.root / "tls")
    assert (made.root / "tls" / "gateway.pem").read_bytes() != before
    time.sleep(3.0)  # the gateway looks once a second
    os.kill(slow, signal.SIGUSR1)

    def came_back() -> bool:
        lines = [line.split() for line in made.log("relay").splitlines() if line.startswith(f"ended {B} ")]
        # Of connections that began after the second cut; calls are more than a handshake.
        return any(int(cuts) == 2 and min(int(there), int(back)) > 1500 for _, _, cuts, there, back in lines)

    until(came_back, made.log("relay"))
    assert made.online() == set(SITES)


def _answers(made: Place) -> bool:
    found = subprocess.run(
        inside(made.hosts.a, *CLI, "node", "list", "--root", str(made.root), "--json"),
        capture_output=True,
        check=False,
    )
    return found.returncode == 0
