"""Runs one training session in a process group of its own, and ends it: at its deadline, when told, when it is done.

The group is killed, not asked: it holds nothing that must be saved. What it needs goes over a pipe that stays open:
when this process dies, the session dies with it. Nothing personal is in a file; those that there are (a key for this
campaign, logs) lie in memory where the system has a RAM file system (`/dev/shm`), else in the temporary folder, for
their owner only, and are removed with the session. The session asks this process for its charge (`charging`), and
this process notices when the session waits for nothing (`watch`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.core.errors import ServiceError
from fedrec.core.processes import CUT_SECONDS, MARK, flower_environment, free_ports, kill, marked
from fedrec.wire.bundle import check_named
from fedrec_client.training._charging import Charge, Till, no_charge
from fedrec_client.training._watch import Watch

#: How often a session is looked after; a stop takes effect within this and the time a kill takes.
TICK_SECONDS = 0.02
#: After its last answer was made a session lives on until the campaign is over, so that the answer leaves; so long at
#: most.
LAST_SECONDS = 60.0
RAM = Path("/dev/shm")
KILL_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Outcome:
    """What became of a session.

    Attributes:
        rounds: in how many rounds this device sent an update.
        bytes_up: of all answers that left.
        finished: the last round was answered.
        reason: how it ended, in one line.
        log: last lines of the session's own log.
    """

    rounds: int
    bytes_up: int
    finished: bool
    reason: str
    log: str = ""


def run_task(
    task: Mapping[str, Any],
    *,
    item_ids: Sequence[str],
    history: Sequence[int],
    identity: bytes,
    node_key: str,
    deadline_seconds: float,
    stopped: Callable[[], bool],
    charge: Charge = no_charge,
    goes_on: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Take part in the rounds of a task.

    Args:
        task: payload that was verified and evaluated.
        item_ids: of the model's items, in order.
        history: places of the user's items, oldest first.
        identity: [32] secret key for secure aggregation.
        node_key: private key of the SuperNode, in OpenSSH's form.
        deadline_seconds: from now.
        stopped: asked many times a second; when true, everything is gone within 100 ms.
        charge: called before the first release; makes the charge durable, or raises FedrecError and nothing leaves.
        goes_on: whether the campaign does, by the model service; asked from another thread while nothing comes.

    Raises:
        ProtocolError: the task names another app bundle than belongs to this installation.
        ServiceError: the session cannot be started.
    """
    check_named(task.get("bundle"))
    folder = Path(tempfile.mkdtemp(prefix="fedrec-", dir=RAM if os.access(RAM, os.W_OK) else None))
    mark = f"session-{secrets.token_hex(8)}"
    wanted = {
        "node": task["node"],
        "superlink": task["superlink"],
        "superlink_ca": task["superlink_ca"],
        "bundle": task.get("bundle"),
        "item_ids": list(item_ids),
        "history": list(history),
        "user_key": secrets.randbits(62),
        "identity": identity.hex(),
        "node_key": node_key,
        "port": free_ports(1)[0],
    }
    rounds = int(task["rounds"])
    worker: subprocess.Popen[bytes] | None = None
    ours, theirs = socket.socketpair()
    try:
        worker = _start(folder, mark, wanted, theirs)
        with Watch(str(task["superlink"]), goes_on, lambda: _sent(folder, "answers")) as watch:
            reason = _look_after(
                worker, folder, rounds, deadline_seconds, stopped, Till(ours, charge), lambda: watch.reason
            )
        return _outcome(folder, rounds, reason)
    except OSError as error:
        raise ServiceError(
            f"a training session cannot be started ({error}): free some space, try later"
        ) from error
    finally:
        if worker is not None:
            end_group(worker, mark)
        shutil.rmtree(folder, ignore_errors=True)
        for end in (ours, theirs):
            end.close()


def end_group(worker: subprocess.Popen[bytes], mark: str) -> None:
    """Kill a session: its group at once, then whatever left the group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    if worker.stdin is not None:
        with suppress(OSError):
            worker.stdin.close()
    deadline = time.monotonic() + CUT_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        kill(left, signal.SIGKILL)
        time.sleep(KILL_POLL_SECONDS)


def _start(
    folder: Path, mark: str, wanted: Mapping[str, Any], line: socket.socket
) -> subprocess.Popen[bytes]:
    environment = flower_environment(folder / "home") | {MARK: mark}
    with (folder / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedrec_client.training.worker", str(folder), str(line.fileno())],
            pass_fds=[line.fileno()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # A long list of items does not fit the pipe before the worker reads, and a stop must not wait for that.
    threading.Thread(
        target=_hand_over, args=(worker, json.dumps(wanted).encode() + b"\n"), daemon=True
    ).start()
    return worker


def _hand_over(worker: subprocess.Popen[bytes], content: bytes) -> None:
    assert worker.stdin is not None
    with suppress(OSError, ValueError):  # the session was ended meanwhile
        worker.stdin.write(content)
        worker.stdin.flush()


def _look_after(
    worker: subprocess.Popen[bytes],
    folder: Path,
    rounds: int,
    seconds: float,
    stopped: Callable[[], bool],
    till: Till,
    over: Callable[[], str],
) -> str:
    deadline = time.monotonic() + seconds
    done_at: float | None = None
    while True:
        now = time.monotonic()
        if stopped():
            return "stopped"
        if done_at is None and _sent(folder, "last") >= rounds:
            done_at = now
        ended = worker.poll() is not None
        if done_at is not None and (ended or over() or now >= min(done_at + LAST_SECONDS, deadline)):
            return "done"
        if ended:
            return f"the session ended by itself with status {worker.returncode}"
        if now >= deadline:
            return "the deadline has passed"
        if why := over():
            return why
        if why := till.serve(TICK_SECONDS):
            return why


def _outcome(folder: Path, rounds: int, reason: str) -> Outcome:
    log = ""
    with suppress(OSError):
        log = (folder / "log").read_text(errors="replace")[-2000:]
    return Outcome(
        _sent(folder, "rounds"), _sent(folder, "bytes"), _sent(folder, "last") >= rounds, reason, log
    )


def _sent(folder: Path, what: str) -> int:
    """From the lines of what left: answers, bytes, rounds with an update, or the last round that was opened."""
    try:
        lines = [json.loads(line) for line in (folder / "node" / "sent.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return 0
    if what == "answers":
        return len(lines)
    if what == "bytes":
        return sum(line["bytes"] for line in lines)
    kind = "train" if what == "rounds" else "unmask"
    numbers = {line["round"] for line in lines if line["kind"] == kind}
    return len(numbers) if what == "rounds" else max(numbers, default=0)
