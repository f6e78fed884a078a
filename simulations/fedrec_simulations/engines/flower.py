"""Flower's simulation engine: one SuperLink of our own, Ray behind it, a node per shard of users.

Out of scope: laying out the run folder; everything about rounds (the coordinator's, in Flower's process).
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import fedrec_simulations
from fedrec.errors import ConfigError, EnvironmentProblem, FederationError, RunError
from fedrec.learning.updates import State
from fedrec.wire.files import read_arrays
from fedrec_server.coordinator import Outcome
from fedrec_server.flower_cli import FlowerCli, last_words
from fedrec_server.launch import Launch, follow
from fedrec_server.processes import end, flower_environment, free_ports, is_alive, program, start

MAX_NODES = 1000
START_SECONDS = 90.0
POLL_SECONDS = 0.3
Event = dict[str, Any]


def run_flower(
    run_dir: Path,
    n_nodes: int,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    wait_seconds: float = 120.0,
) -> Outcome:
    """Run (or go on with) the run of a folder under Flower's simulation engine.

    Args:
        run_dir: a run folder with `coordinator/` and `nodes/0` to `nodes/<n_nodes - 1>`.
        n_nodes: how many nodes host the users; each takes one CPU while it works.
        on_event: called with each of the coordinator's events.
        stop: when true, the run ends at the end of its round, with a checkpoint.
        wait_seconds: how long the coordinator waits for the nodes.

    Raises:
        ConfigError: more than 1000 nodes.
        RunError: the run folder has not as many nodes.
        FedrecError: whatever ended the coordinator.
    """
    check_nodes(run_dir, n_nodes)
    launch = Launch(run_dir / "coordinator")
    launch.prepare()
    log = run_dir / "logs" / "flower-simulation.log"
    config: dict[str, str | int | float] = {
        "run-dir": str(run_dir.resolve()),
        "nodes": n_nodes,
        "wait-seconds": wait_seconds,
    }
    with _superlink(run_dir / "logs" / "superlink.log") as (cli, mark):
        size = f"num-supernodes={n_nodes} client-resources-num-cpus=1"
        starter = cli.run(app_folder(), config, mark=mark, log=log, federation=size)
        finished = follow(launch, lambda: gone(starter, log), on_event=on_event, stop=stop)
    return outcome(run_dir, finished)


def check_nodes(run_dir: Path, n_nodes: int) -> None:
    """See the errors of `run_flower`."""
    if not 1 <= n_nodes <= MAX_NODES:
        raise ConfigError(
            f"federation.nodes is {n_nodes}: expected 1 to {MAX_NODES}; a node hosts a shard of users, "
            "so more users need no more nodes"
        )
    found = sum(1 for path in (run_dir / "nodes").glob("*") if path.is_dir())
    if found != n_nodes or not (run_dir / "coordinator").is_dir():
        raise RunError(f"run {run_dir} is laid out for {found} nodes: expected {n_nodes}; prepare it again")


def app_folder() -> Path:
    """The thin Flower app: inside the installed package, or beside it in a checkout."""
    package = Path(fedrec_simulations.__file__).parent
    for folder in (package / "apps" / "fedrec", package.parent / "apps" / "fedrec"):
        if (folder / "pyproject.toml").exists():
            return folder
    raise EnvironmentProblem(f"no Flower app beside {package}: install fedrec again, with the extra 'sim'")


def gone(starter: subprocess.Popen[bytes], log: Path) -> str | None:
    """Why no more news of a run can come, or None."""
    if starter.poll() is None:
        return None
    return f"Flower ended the run ({last_words(log)}; all of it in {log})"


def outcome(run_dir: Path, finished: bool) -> Outcome:
    """The outcome of a run by what lies in its folder."""
    folder = run_dir / "coordinator"
    arrays, header = read_arrays(folder / "checkpoint.safetensors")
    shared: State = {
        name.removeprefix("shared/"): values for name, values in arrays.items() if name.startswith("shared/")
    }
    result = read_result(folder) if finished else {}
    return Outcome(finished, int(header["round"]), shared, result)


def read_result(folder: Path) -> dict[str, Any]:
    """The `result.json` of a finished coordinator."""
    return dict(json.loads((folder / "result.json").read_text()))


@contextmanager
def _superlink(log: Path) -> Iterator[tuple[FlowerCli, str]]:
    """A private SuperLink for one simulation; it and all that it started are gone afterwards."""
    # Ray's sockets need a short path, and Flower's home must not be the user's.
    home = Path(tempfile.mkdtemp(prefix="fedrec-"))
    mark = f"simulation-{secrets.token_hex(8)}"
    (port,) = free_ports(1)
    leaders: list[int] = []
    try:
        cli = FlowerCli(home / "flower")
        cli.write_config(f"127.0.0.1:{port}", None)
        command = [program("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--disable-runtime-dependency-installation"]
        env = flower_environment(home / "flower", {"RAY_TMPDIR": str(home)})
        leaders.append(start(command, mark=mark, env=env, log=log).pid)
        await_health(f"http://127.0.0.1:{port}/health", leaders[0], log)
        yield cli, mark
    finally:
        end(mark, leaders)
        shutil.rmtree(home, ignore_errors=True)


def await_health(url: str, pid: int, log: Path) -> None:
    """Wait until a service answers.

    Raises:
        FederationError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and is_alive(pid):
        try:
            if httpx.get(url, timeout=5.0, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(POLL_SECONDS)
    raise FederationError(f"Flower's SuperLink did not start ({last_words(log)}): see {log}")
