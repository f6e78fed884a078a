"""A federation on this machine, with everything a spread-out one has: TLS, node keys, a gateway, own processes.

    FOLDER/federation.json        ports, marks and process ids
    FOLDER/tls/                   private CA, certificates of SuperLink and gateway
    FOLDER/superlink/             SuperLink's database; FOLDER/operator/ settings of the `flwr` command
    FOLDER/nodes/<k>/             key, Flower home, and `data`, a link to what the node hosts: RUN/nodes/<k>
    FOLDER/logs/

Nodes are given the gateway's address only; SuperLink's own port, whose control API knows no authentication, is the
operator's. Everything listens on 127.0.0.1, where other users of the machine can reach it: this is for trying a
deployment out, not for a shared host. Out of scope: rounds, printing.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from fedrec.core.errors import ConfigError, FederationError
from fedrec.core.processes import cut, end, flower_environment, is_alive, kill, marked, start
from fedrec.privacy.private_files import make_private
from fedrec_server.federation._federation_parts import Parts, Record
from fedrec_server.federation.flower_cli import FINISHED, FlowerCli, NodeStatus, last_words
from fedrec_server.federation.flower_run import FlowerRun, check_nodes
from fedrec_server.federation.superlink_state import database_of, drop_deleted
from fedrec_server.network.certificates import make_certificates, make_node_key

MAX_NODES = 64
START_SECONDS = 120.0
#: Flower refuses a killed node's key for about a minute.
NODE_SECONDS = 180.0
#: How long a coordinator waits for nodes that are not there.
WAIT_SECONDS = 30.0
#: How long the process of a run that has ended may take to leave.
LEAVE_SECONDS = 20.0
POLL_SECONDS = 0.5
Event = dict[str, Any]
Step = Callable[[str], None]


class Federation:
    """A running federation; make one with `up`, find one again with `open`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.record = parts.record
        self.cli = FlowerCli(parts.home("operator"))

    # Up and down ---------------------------------------------------------------------------------------

    @classmethod
    def up(cls, folder: Path, nodes: int = 4, *, on_step: Step = lambda step: None) -> Federation:
        """Start a federation and wait until all its nodes are there.

        Args:
            folder: where it keeps its keys, database and logs; made when missing.
            nodes: how many SuperNodes.
            on_step: told what was done.

        Raises:
            ConfigError: a number of nodes out of range.
            FederationError: it runs already, or a part did not start; nothing is left running.
        """
        if not 1 <= nodes <= MAX_NODES:
            raise ConfigError(
                f"{nodes} nodes: expected 1 to {MAX_NODES}; each takes about 250 MB on this machine"
            )
        folder = folder.resolve()
        if (folder / "federation.json").exists() and marked(Parts.read(folder).record.mark):
            raise FederationError(
                f"a federation already runs in {folder}: stop it with `fedrec-server federation down`"
            )
        federation = cls(Parts(folder, Record.plan(nodes)))
        federation.forget()
        federation.parts.write()
        try:
            federation._start_all(on_step)
        except BaseException:
            federation.down()
            raise
        return federation

    @classmethod
    def open(cls, folder: Path) -> Federation:
        """The federation of a folder, as another process left it.

        Raises:
            FederationError: there is none.
        """
        return cls(Parts.read(folder))

    def down(self) -> None:
        """Stop every process of the federation and remove its database, through which every message went.

        Keys and logs stay until `forget` or the next `up`.
        """
        end(self.record.mark, self.record.pids.values())
        shutil.rmtree(self.parts.home("superlink"), ignore_errors=True)
        self.record.pids = {}
        self.parts.write()

    def forget(self) -> None:
        """Remove keys and database of a federation that is down; what nodes host is elsewhere."""
        for name in ("tls", "superlink", "operator", "nodes"):
            shutil.rmtree(self.parts.home(name), ignore_errors=True)

    def status(self) -> dict[str, Any]:
        """Whether each part runs, and what Flower says of each node."""
        alive = {name: is_alive(pid) for name, pid in self.record.pids.items()}
        known = self.cli.node_status() if alive.get("superlink") else {}
        silent = NodeStatus("unknown", 0.0)
        return {
            "folder": str(self.parts.folder),
            "gateway": f"127.0.0.1:{self.record.gateway_port}",
            "processes": alive,
            "nodes": {str(k): known.get(node, silent).status for k, node in enumerate(self.record.node_ids)},
        }

    # Nodes ---------------------------------------------------------------------------------------------

    def kill_node(self, k: int) -> None:
        """End a node as a power cut does: its processes get SIGKILL, no one is told."""
        self._kill(f"node-{k}")

    def restart_node(self, k: int, *, wait: bool = True) -> None:
        """Start a node again; after a kill its key is refused until Flower has noticed that it was gone.

        Raises:
            FederationError: it was not accepted in time.
        """
        name = f"node-{k}"
        end(self.parts.mark(name), [self.record.pids[name]] if name in self.record.pids else [])
        self._start_node(k)
        if wait:
            self.await_nodes([k])

    def await_nodes(self, which: list[int] | None = None, seconds: float = NODE_SECONDS) -> None:
        """Wait until nodes are online.

        Raises:
            FederationError: one did not come in time.
        """
        wanted = range(self.record.nodes) if which is None else which
        deadline = time.monotonic() + seconds
        while True:
            status = self.cli.node_status()
            missing = [k for k in wanted if not self._is_online(k, status)]
            if not missing:
                return
            if time.monotonic() > deadline:
                log = self.parts.log(f"node-{missing[0]}")
                raise FederationError(f"node {missing[0]} did not come ({last_words(log)}): see {log}")
            time.sleep(POLL_SECONDS)

    # Runs ----------------------------------------------------------------------------------------------

    def start_run(self, run_dir: Path, app: Path, *, wait_seconds: float = WAIT_SECONDS) -> FlowerRun:
        """Hand each node its folder and start a coordinator; it goes on where an earlier one was killed.

        Raises:
            RunError: the run folder does not fit the federation.
            FederationError: another run is going on: each node hosts one run at a time.
        """
        run_dir = run_dir.resolve()
        check_nodes(run_dir, self.record.nodes)
        superlink = self.record.pids.get("superlink")
        if superlink is None or not is_alive(superlink):
            self.restart_superlink()
        self._clear()
        for k in range(self.record.nodes):
            _point(self.parts.node_home(k) / "data", run_dir / "nodes" / str(k))
        mark = self.parts.mark("run")
        return FlowerRun.start(
            self.cli, app, run_dir, self.record.nodes, mark=mark, wait_seconds=wait_seconds
        )

    def run_and_wait(
        self,
        run_dir: Path,
        app: Path,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Run, or go on with, a run until it ends; whether it finished all rounds.

        A run whose coordinator or SuperLink was killed goes on as a new Flower run after its last checkpoint.

        Raises:
            FedrecError: whatever ended the coordinator.
        """
        finished = self.start_run(run_dir, app).wait(on_event=on_event, stop=stop)
        self._await_leaving()
        drop_deleted(database_of(self.parts.home("superlink")))
        return finished

    def kill_coordinator(self) -> None:
        """Kill the process in which Flower runs the coordinator.

        Raises:
            FederationError: no coordinator runs.
        """
        coordinators = self._coordinators()
        if not coordinators:
            raise FederationError("no coordinator runs in this federation: start a run first")
        kill(coordinators, signal.SIGKILL)

    def kill_superlink(self) -> None:
        """Kill SuperLink, and with it the coordinator, as a power cut does."""
        self._kill("superlink")

    def restart_superlink(self) -> None:
        """Start SuperLink again on the same database; nodes reconnect by themselves.

        Raises:
            FederationError: it did not start.
        """
        self._kill("superlink")
        self._start_superlink()
        self._await_health("superlink", self.record.superlink_port)

    def _coordinators(self) -> list[int]:
        found = marked(self.parts.mark("superlink"))
        return [pid for pid, command in found.items() if "flwr-serverapp" in command]

    def _clear(self) -> None:
        """Make room for a run.

        A run whose coordinator was killed stays "running" at Flower for a minute, and nodes wait for the rest of
        what it was sending; they are free again when Flower is told that it is over.
        """
        self._await_leaving()
        for run_id, status in self.cli.run_status().items():
            if not status.startswith(FINISHED):
                self.cli.stop_run(run_id)

        drop_deleted(database_of(self.parts.home("superlink")))

    def _await_leaving(self) -> None:
        deadline = time.monotonic() + LEAVE_SECONDS
        while self._coordinators():
            if time.monotonic() > deadline:
                raise FederationError("a run is going on in this federation: wait for its end, or stop it")
            time.sleep(POLL_SECONDS)

    # Parts ---------------------------------------------------------------------------------------------

    def _start_servers(self, on_step: Step, stop: Callable[[], bool] = lambda: False) -> None:
        ca = make_certificates(self.parts.home("tls"), ("superlink", "gateway"))
        self.cli.write_config(f"127.0.0.1:{self.record.superlink_port}", ca)
        self._start_superlink()
        self._start("gateway", self.parts.gateway(), dict(os.environ))
        self._await_health("superlink", self.record.superlink_port, stop)
        on_step("SuperLink answers over TLS and demands node keys")
        self._await_health("gateway", self.record.gateway_port, stop)
        on_step("gateway answers over TLS: the only address that nodes are given")

    def _start_all(self, on_step: Step) -> None:
        self._start_servers(on_step)
        with ThreadPoolExecutor(2) as pool:
            self.record.node_ids = list(pool.map(self._admit, range(self.record.nodes)))
        on_step(f"{self.record.nodes} node keys registered")
        for k in range(self.record.nodes):
            self._start_node(k)
        self.await_nodes()
        on_step(f"{self.record.nodes} SuperNodes online")

    def _admit(self, k: int) -> str:
        """Make a node's key and register it under the node's number; returns its id at Flower."""
        return self.cli.register(make_node_key(self.parts.node_home(k) / "key"), str(k))

    def _start_superlink(self) -> None:
        home = self.parts.home("superlink")
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_private(home)
        self._start("superlink", self.parts.superlink(), flower_environment(home / "flower"))

    def _start_node(self, k: int) -> None:
        home = self.parts.node_home(k)
        self._start(f"node-{k}", self.parts.node(k), flower_environment(home / "flower"))

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        self.record.started[name] = time.time()
        child = start(command, mark=self.parts.mark(name), env=env, log=self.parts.log(name))
        self.record.pids[name] = child.pid
        self.parts.write()

    def _kill(self, name: str) -> None:
        pid = self.record.pids.pop(name, None)
        cut(self.parts.mark(name), [] if pid is None else [pid])
        self.parts.write()

    def _await_health(self, name: str, port: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Wait until a part answers over TLS with a certificate of the private CA."""
        trust = ssl.create_default_context(cafile=str(self.parts.ca))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and is_alive(self.record.pids[name]):
            _expect_no_stop(stop)
            with suppress(httpx.HTTPError):
                url = f"https://127.0.0.1:{port}/health"
                if httpx.get(url, verify=trust, timeout=5.0, trust_env=False).is_success:
                    return
            time.sleep(POLL_SECONDS / 2)
        log = self.parts.log(name)
        raise FederationError(f"{name} did not start ({last_words(log)}): see {log}")

    def _is_online(self, k: int, status: dict[str, NodeStatus]) -> bool:
        """Whether a node came since it was started: Flower calls a killed one online for a while."""
        node = status.get(self.record.node_ids[k])
        age = time.time() - self.record.started.get(f"node-{k}", 0.0)
        return node is not None and node.status == "online" and node.seconds <= age + 1.0


def _expect_no_stop(stop: Callable[[], bool]) -> None:
    if stop():
        raise FederationError("the federation was stopped while it started: start it again")


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
