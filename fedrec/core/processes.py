"""Starting processes so that every one of them, and all that they start, can be found and ended again.

Each process gets a session of its own and a mark in its environment, which its children inherit: Flower and Ray
start processes of processes, some in sessions of their own, and a kill leaves orphans. The mark finds them, from
any process of the same user. Where there is no /proc, only the sessions are ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedrec.core.errors import FederationError

MARK = "FEDREC_PROCESS"
POLL_SECONDS = 0.1
CUT_SECONDS = 10.0

#: Children of this process by id; kept so that their ends are noticed, whoever asks.
_children: dict[int, subprocess.Popen[bytes]] = {}


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that no one listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def program(name: str) -> str:
    """Path of a program installed beside this Python.

    Raises:
        FederationError: it is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FederationError(f"{name} is not installed beside {sys.executable}: pip install 'fedrec[sim]'")
    return str(path)


def flower_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for Flower's programs: own home, nothing installed at run time, nothing reported home."""
    home.mkdir(parents=True, exist_ok=True)
    settings = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        # Flower starts its own programs by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "NO_COLOR": "1",
    }
    return {"OMP_NUM_THREADS": "1"} | os.environ | settings | dict(extra or {})


def start(command: Sequence[str], *, mark: str, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in its own session; its output is appended to `log`, and its files are its user's alone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(command),
            env=dict(env) | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
        )
    _children[child.pid] = child
    return child


def marked(mark: str) -> dict[int, str]:
    """Command lines of the living processes with this mark, or with one that begins with `mark` and a slash."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            settings = (folder / "environ").read_bytes().split(b"\0")
            if not any(s == wanted or s.startswith(wanted + b"/") for s in settings):
                continue
            if _is_zombie(folder):
                continue
            found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of this id exists and is not merely waiting to be collected."""
    if pid in _children:
        return _children[pid].poll() is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(Path(f"/proc/{pid}"))


def kill(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes, by their id; those that are gone are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def end(mark: str, leaders: Iterable[int], patience_seconds: float = 5.0) -> None:
    """End all marked processes: the leaders are asked first, what is left after the patience is killed."""
    leaders = [pid for pid in leaders if is_alive(pid)]
    kill(leaders, signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while any(is_alive(pid) for pid in leaders) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    cut(mark, leaders)


def cut(mark: str, leaders: Iterable[int]) -> None:
    """Kill all marked processes without asking, as a power cut does, the leaders first."""
    for pid in leaders:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + CUT_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        kill(left, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    _collect()


def _collect() -> None:
    """Take notice of the end of own children, so that they do not stay as zombies."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def _is_zombie(folder: Path) -> bool:
    try:
        return (folder / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False
