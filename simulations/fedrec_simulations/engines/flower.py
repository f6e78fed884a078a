"""Flower's simulation engine: one SuperLink of our own, Ray behind it, a node per shard of users.

Out of scope: laying out the run folder; everything about rounds (the coordinator's, in Flower's process).
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from fedrec.core.errors import ConfigError, FederationError
from fedrec.core.processes import end, flower_environment, free_ports, is_alive, program, start
from fedrec_server.federation.flower_cli import FlowerCli, last_words
from fedrec_server.federation.flower_run import FlowerRun, check_nodes
from fedrec_server.federation.run_files import app_folder, read_outcome
from fedrec_server.rounds.coordinator import Outcome

MAX_NODES = 1000
START_SECONDS = 90.0
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.3
#: Before the mark of every simulation's processes.
MARK = "simulation"
Event = dict[str, Any]


def run_flower(
    run_dir: Path,
    n_nodes: int,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run (or go on with) the run of a folder under Flower's simulation engine.

    Args:
        run_dir: a run folder with `coordinator/` and `nodes/0` to `nodes/<n_nodes - 1>`.
        n_nodes: how many nodes host the users; each takes one CPU while it works.
        on_event: called with each of the coordinator's events.
        stop: when true, the run ends at the end of its round, with a checkpoint.

    Raises:
        ConfigError: more than 1000 nodes.
        RunError: the run folder has not as many nodes.
        FedrecError: whatever ended the coordinator.
    """
    if not 1 <= n_nodes <= MAX_NODES:
        raise ConfigError(
            f"federation.nodes is {n_nodes}: expected 1 to {MAX_NODES}; a node hosts a shard of users, "
            "so more users need no more nodes"
        )
    check_nodes(run_dir, n_nodes)
    size = f"num-supernodes={n_nodes} client-resources-num-cpus=1"
    mark = f"{MARK}/{secrets.token_hex(8)}"
    with simulation_superlink(run_dir / "logs" / "superlink.log", mark) as cli:
        run = FlowerRun.start(
            cli, app_folder(), run_dir, n_nodes, mark=mark, wait_seconds=WAIT_SECONDS, federation=size
        )
        finished = run.wait(on_event=on_event, stop=stop)
    return read_outcome(run_dir, finished)


@contextmanager
def simulation_superlink(log: Path, mark: str, extra: dict[str, str] | None = None) -> Iterator[FlowerCli]:
    """A private SuperLink for one simulation; it and all that it started are gone afterwards.

    Args:
        log: where its output goes.
        mark: by which it and its descendants are known.
        extra: more of its environment.

    Raises:
        FederationError: it did not start.
    """
    # Ray's sockets need a short path, and Flower's home must not be the user's.
    home = Path(tempfile.mkdtemp(prefix="fedrec-"))
    (port,) = free_ports(1)
    leaders: list[int] = []
    try:
        cli = FlowerCli(home / "flower")
        cli.write_config(f"127.0.0.1:{port}", None)
        command = [program("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--disable-runtime-dependency-installation"]
        env = flower_environment(home / "flower", {"RAY_TMPDIR": str(home)} | (extra or {}))
        leaders.append(start(command, mark=mark, env=env, log=log).pid)
        _await_health(f"http://127.0.0.1:{port}/health", leaders[0], log)
        yield cli
    finally:
        end(mark, leaders)
        shutil.rmtree(home, ignore_errors=True)


def _await_health(url: str, pid: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and is_alive(pid):
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5.0, trust_env=False).is_success:
                return
        time.sleep(POLL_SECONDS)
    raise FederationError(f"Flower's SuperLink did not start ({last_words(log)}): see {log}")
