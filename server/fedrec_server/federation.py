"""A federation on this machine, with everything a spread-out one has: TLS, node keys, a gateway, own processes.

    FOLDER/federation.json        ports, marks and process ids: any process of the user can go on from here
    FOLDER/tls/                   private CA, certificates of SuperLink and gateway
    FOLDER/superlink/             SuperLink's database; FOLDER/operator/ Flower settings of `flwr`
    FOLDER/nodes/<k>/             key, Flower home, and `data`, a link to what the node hosts: RUN/nodes/<k>
    FOLDER/logs/

Nodes are given the gateway's address only; SuperLink's own port, with its control API that knows no
authentication, is the operator's. Everything listens on 127.0.0.1, where other users of the machine can reach it:
this is for trying a deployment out, not for a shared host. Out of scope: rounds, printing.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from fedrec.errors import ConfigError, FederationError, RunError
from fedrec.wire.files import write_json
from fedrec_server.certificates import make_certificates, make_node_key
from fedrec_server.flower_cli import FlowerCli, last_words
from fedrec_server.launch import Launch, follow
from fedrec_server.processes import (
    end,
    flower_environment,
    free_ports,
    is_alive,
    kill,
    marked,
    program,
    start,
)

MAX_NODES = 64
START_SECONDS = 120.0
#: Flower refuses a killed node's key for about a minute.
NODE_SECONDS = 150.0
POLL_SECONDS = 0.5
Event = dict[str, Any]


@dataclass
class Record:
    """What `federation.json` holds."""

    mark: str
    nodes: int
    superlink_port: int
    gateway_port: int
    node_ports: list[int]
    node_ids: list[str]
    pids: dict[str, int]


class Federation:
    """A running federation; make one with `up`, find one again with `open`."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record
        self.cli = FlowerCli(folder / "operator")

    # Up and down ---------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls, folder: Path, nodes: int = 4, *, on_step: Callable[[str], None] = lambda step: None
    ) -> Federation:
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
            raise ConfigError(f"{nodes} nodes: expected 1 to {MAX_NODES}, each is a process of about 150 MB here")
        folder = folder.resolve()
        if (folder / "federation.json").exists() and marked(cls.open(folder).record.mark):
            raise FederationError(f"a federation already runs in {folder}: stop it with `fedrec federation down`")
        for name in ("tls", "superlink", "operator", "nodes"):
            shutil.rmtree(folder / name, ignore_errors=True)
        federation = cls(folder, cls._plan(nodes))
        federation._save()
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
        path = folder.resolve() / "federation.json"
        try:
            return cls(path.parent, Record(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise FederationError(
                f"no federation in {folder} ({type(error).__name__}): start one with `fedrec federation up`"
            ) from error

    def down(self) -> None:
        """Stop every process of the federation; keys, database and logs stay."""
        end(self.record.mark, self.record.pids.values())
        self.record.pids = {}
        self._save()

    def status(self) -> dict[str, Any]:
        """Whether each part runs, and what Flower says of each node."""
        alive = {name: is_alive(pid) for name, pid in self.record.pids.items()}
        known = self.cli.node_status() if alive.get("superlink") else {}
        nodes = {str(k): known.get(node, "unknown") for k, node in enumerate(self.record.node_ids)}
        return {
            "folder": str(self.folder),
            "processes": alive,
            "nodes": nodes,
            "gateway": f"127.0.0.1:{self.record.gateway_port}",
        }

    # Nodes ---------------------------------------------------------------------------------------------

    def kill_node(self, k: int) -> None:
        """End a node as a power cut does: its processes get SIGKILL, nobody is told."""
        self._kill(f"node-{k}")

    def restart_node(self, k: int, *, wait: bool = True) -> None:
        """Start a node again; its key is refused until Flower has noticed that it was gone.

        Raises:
            FederationError: it was not accepted in time.
        """
        self._kill(f"node-{k}")
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
                log = self._log(f"node-{missing[0]}")
                raise FederationError(f"node {missing[0]} did not come ({last_words(log)}): see {log}")
            time.sleep(POLL_SECONDS)

    def supernode_command(self, key: Path, port: int, data: Path) -> list[str]:
        """How a SuperNode is started: with the gateway's address, its own key and its own folder."""
        return [
            program("flower-supernode"),
            "--superlink",
            f"127.0.0.1:{self.record.gateway_port}",
            "--root-certificates",
            str(self.folder / "tls" / "ca.crt"),
            "--auth-supernode-private-key",
            str(key),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--node-config",
            f"node-dir={json.dumps(str(data))}",
        ]

    # Runs ----------------------------------------------------------------------------------------------

    def start_run(self, run_dir: Path, app: Path, *, wait_seconds: float = 60.0) -> Run:
        """Hand the nodes their folders and start a coordinator as a new Flower run; it resumes by itself.

        Raises:
            RunError: the run folder does not fit the federation.
        """
        run_dir = run_dir.resolve()
        folders = [run_dir / "nodes" / str(k) for k in range(self.record.nodes)]
        found = len([path for path in (run_dir / "nodes").glob("*") if path.is_dir()])
        if found != len(folders) or not all(path.is_dir() for path in folders):
            raise RunError(f"run {run_dir} is laid out for {found} nodes: expected {len(folders)}; prepare it again")
        for k, target in enumerate(folders):
            _point(self.folder / "nodes" / str(k) / "data", target)
        launch = Launch(run_dir / "coordinator")
        launch.prepare()
        log = run_dir / "logs" / "flower-run.log"
        config: dict[str, str | int | float] = {
            "run-dir": str(run_dir),
            "nodes": self.record.nodes,
            "wait-seconds": wait_seconds,
        }
        return Run(launch, self.cli.run(app, config, mark=f"{self.record.mark}/run", log=log), log)

    def run_and_wait(
        self,
        run_dir: Path,
        app: Path,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Run (or go on with) a run until it ends; whether it finished all rounds.

        Raises:
            FedrecError: whatever ended the coordinator.
        """
        return self.start_run(run_dir, app).wait(on_event=on_event, stop=stop)

    def resume(
        self,
        run_dir: Path,
        app: Path,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Go on with a run whose coordinator or SuperLink was killed, as a new Flower run; as `run_and_wait`.

        Raises:
            RunError: there is no checkpoint to go on from.
            FedrecError: whatever ended the coordinator.
        """
        if not (run_dir / "coordinator" / "checkpoint.safetensors").exists():
            raise RunError(f"run {run_dir} has no checkpoint yet: start it without --resume")
        if not is_alive(self.record.pids.get("superlink", 0)):
            self.restart_superlink()
        return self.run_and_wait(run_dir, app, on_event=on_event, stop=stop)

    def kill_coordinator(self) -> None:
        """Kill the process in which Flower runs the coordinator.

        Raises:
            FederationError: no coordinator runs.
        """
        found = marked(f"{self.record.mark}/superlink")
        coordinators = [pid for pid, command in found.items() if "flwr-serverapp" in command]
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

    # Parts ---------------------------------------------------------------------------------------------

    @staticmethod
    def _plan(nodes: int) -> Record:
        superlink, gateway, *others = free_ports(2 + nodes)
        return Record(f"federation-{secrets.token_hex(8)}", nodes, superlink, gateway, others, [], {})

    def _start_all(self, on_step: Callable[[str], None]) -> None:
        ca = make_certificates(self.folder / "tls", ("superlink", "gateway"))
        self.cli.write_config(f"127.0.0.1:{self.record.superlink_port}", ca)
        self._start_superlink()
        self._start_gateway()
        self._await_health("superlink", self.record.superlink_port)
        on_step("SuperLink answers over TLS and wants node keys")
        self._await_health("gateway", self.record.gateway_port)
        on_step(f"gateway answers on 127.0.0.1:{self.record.gateway_port}, the only address nodes are given")
        with ThreadPoolExecutor(2) as pool:
            self.record.node_ids = list(pool.map(self._admit, range(self.record.nodes)))
        on_step(f"{self.record.nodes} node keys registered")
        for k in range(self.record.nodes):
            self._start_node(k)
        self.await_nodes()
        on_step(f"{self.record.nodes} SuperNodes online")

    def _start_superlink(self) -> None:
        tls, home = self.folder / "tls", self.folder / "superlink"
        home.mkdir(parents=True, exist_ok=True)
        command = [program("flower-superlink"), "--host", "127.0.0.1", "--port", str(self.record.superlink_port)]
        command += ["--ssl-ca-certfile", str(tls / "ca.crt"), "--ssl-certfile", str(tls / "superlink.pem")]
        command += ["--ssl-keyfile", str(tls / "superlink.key"), "--enable-supernode-auth"]
        command += ["--database", str(home / "state.db"), "--disable-runtime-dependency-installation"]
        self._start("superlink", command, flower_environment(home / "flower"))

    def _start_gateway(self) -> None:
        tls = self.folder / "tls"
        command = [sys.executable, "-m", "fedrec_server.gateway", "--port", str(self.record.gateway_port)]
        command += ["--certificate", str(tls / "gateway.pem"), "--key", str(tls / "gateway.key")]
        command += ["--upstream", f"https://127.0.0.1:{self.record.superlink_port}", "--ca", str(tls / "ca.crt")]
        self._start("gateway", command, dict(os.environ))

    def _admit(self, k: int) -> str:
        return self.cli.register(make_node_key(self.folder / "nodes" / str(k) / "key"), str(k))

    def _start_node(self, k: int) -> None:
        home = self.folder / "nodes" / str(k)
        command = self.supernode_command(home / "key", self.record.node_ports[k], home / "data")
        supervised = [sys.executable, "-m", "fedrec_server.supervisor", *command]
        self._start(f"node-{k}", supervised, flower_environment(home / "flower"))

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        child = start(command, mark=f"{self.record.mark}/{name}", env=env, log=self._log(name))
        self.record.pids[name] = child.pid
        self._save()

    def _kill(self, name: str) -> None:
        pid = self.record.pids.pop(name, None)
        end(f"{self.record.mark}/{name}", [] if pid is None else [pid], patience_seconds=0.0)
        self._save()

    def _await_health(self, name: str, port: int) -> None:
        """Wait until a part answers over TLS with its certificate."""
        trust = ssl.create_default_context(cafile=str(self.folder / "tls" / "ca.crt"))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and is_alive(self.record.pids[name]):
            try:
                url = f"https://127.0.0.1:{port}/health"
                if httpx.get(url, verify=trust, timeout=5.0, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(POLL_SECONDS / 2)
        log = self._log(name)
        raise FederationError(f"{name} did not start ({last_words(log)}): see {log}")

    def _is_online(self, k: int, status: dict[str, str]) -> bool:
        """Whether Flower says so of a SuperNode that lives: a killed one stays "online" there for a while."""
        lives = any("flower-superexec" in c for c in marked(f"{self.record.mark}/node-{k}").values())
        return lives and status.get(self.record.node_ids[k]) == "online"

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "federation.json", asdict(self.record))


@dataclass(frozen=True)
class Run:
    """A coordinator that was started as a Flower run."""

    launch: Launch
    starter: subprocess.Popen[bytes]
    log: Path

    def wait(
        self,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Report events until the run ends; whether it finished all rounds.

        Raises:
            FedrecError: whatever ended the coordinator.
        """
        try:
            return follow(self.launch, self._gone, on_event=on_event, stop=stop)
        finally:
            end_starter(self.starter)

    def _gone(self) -> str | None:
        if self.starter.poll() is None:
            return None
        return f"Flower ended the run ({last_words(self.log)}; all of it in {self.log})"


def end_starter(starter: subprocess.Popen[bytes]) -> None:
    """Stop following a run's log; the run itself goes on or has ended."""
    if starter.poll() is None:
        starter.terminate()
        try:
            starter.wait(5.0)
        except subprocess.TimeoutExpired:
            starter.kill()
            starter.wait(5.0)


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
