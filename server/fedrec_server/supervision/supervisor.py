"""Keeps the parts of a server running: starts each again when it ends, with growing pauses, until told to stop.

    ROOT/run/supervisor.lock   locked while a supervisor runs; holds its process id
    ROOT/run/parts.json        each part: process id, state, since when, how often it was started again
    ROOT/run/asked/<part>      a part is to be restarted; `asked/stop`: all are to end
    ROOT/run/<part>.log        what a part prints; cut when it is long

Parts die with the supervisor where the system can see to that (Linux); elsewhere, and after a kill in the wrong
moment, the next start ends what is left before it begins. Out of scope: which parts there are (`parts`).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrec.core.errors import RunError
from fedrec.core.files import write_json
from fedrec_server.supervision.parts import Part

RUN, LOCK, PARTS, ASKED, STOP = "run", "supervisor.lock", "parts.json", "asked", "stop"
LOOK_SECONDS = 0.2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
#: A part that ran this long is steady; its next pause is short again.
STEADY_SECONDS = 30.0
STOP_SECONDS = 15.0
LOG_BYTES = 16 << 20
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass
class _Running:
    """A part at work.

    Attributes:
        child: its process; None: it waits for its next start.
        started: when, in seconds since 1970; `at`: monotonic.
        restarts: how often it was started again.
        pause: before the next start.
        due: when the next start is, monotonic.
        ended: how the last process ended, in words.
    """

    part: Part
    child: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    at: float = 0.0
    restarts: int = -1
    pause: float = FIRST_PAUSE_SECONDS
    due: float = 0.0
    ended: str = ""
    asked: bool = field(default=False)


class Supervisor:
    """Of one server; see the module's text.

    Args:
        root: the server's folder.
        parts: in the order in which they start.
        on_step: told what happens.
    """

    def __init__(
        self, root: Path, parts: Sequence[Part], on_step: Callable[[str], None] = lambda step: None
    ) -> None:
        self._folder = root / RUN
        self._running = [_Running(part) for part in parts]
        self._on_step = on_step

    def run(self, stop: Callable[[], bool]) -> None:
        """Keep the parts running until `stop` is true or a stop is asked for.

        Raises:
            RunError: another supervisor runs here, or the folder cannot be written.
        """
        with self._alone():
            _end_left(self._folder)
            (self._folder / ASKED).mkdir(exist_ok=True)
            for path in (self._folder / ASKED).iterdir():
                path.unlink()
            try:
                while not stop() and not (self._folder / ASKED / STOP).exists():
                    self._look()
                    time.sleep(LOOK_SECONDS)
            finally:
                self._end()

    def _look(self) -> None:
        now, changed = time.monotonic(), False
        for each in self._running:
            asked = self._folder / ASKED / each.part.name
            if asked.exists():
                asked.unlink(missing_ok=True)
                self._on_step(f"{each.part.name} is restarted")
                _terminate([each.child])
                each.child, each.due, each.asked, changed = None, now, True, True
            if each.child is not None and each.child.poll() is not None:
                self._note_end(each, now)
                changed = True
            if each.child is None and now >= each.due:
                self._start(each)
                changed = True
        if changed:
            self._write()

    def _note_end(self, each: _Running, now: float) -> None:
        assert each.child is not None
        steady = now - each.at > STEADY_SECONDS
        each.pause = FIRST_PAUSE_SECONDS if steady else min(2 * each.pause, LONGEST_PAUSE_SECONDS)
        each.ended = _ending(each.child.returncode)
        each.child, each.due = None, now + each.pause
        self._on_step(
            f"{each.part.name} {each.ended}: started again in {each.pause:g} s; see {self._log(each)}"
        )

    def _start(self, each: _Running) -> None:
        log = self._log(each)
        with suppress(OSError):
            if log.stat().st_size > LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            each.child = subprocess.Popen(
                list(each.part.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        each.started, each.at, each.restarts = time.time(), time.monotonic(), each.restarts + 1

    def _log(self, each: _Running) -> Path:
        return self._folder / f"{each.part.name}.log"

    def _write(self) -> None:
        plain = {
            each.part.name: {
                "pid": each.child.pid if each.child else None,
                "since": each.started,
                "restarts": max(each.restarts, 0),
                "ended": each.ended,
                "host": each.part.host,
                "port": each.part.port,
            }
            for each in self._running
        }
        write_json(self._folder / PARTS, plain)

    def _end(self) -> None:
        """Told to stop, the last part first."""
        _terminate([each.child for each in reversed(self._running)])
        for each in self._running:
            each.child = None
        self._write()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / LOCK).open("a+")
        except OSError as error:
            raise RunError(
                f"{self._folder} cannot be written ({error.strerror}): give a folder of your own"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(
                    f"{self._folder.parent} is running already: `fedrec-server status`, or `fedrec-server down` first"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def ask(root: Path, what: str) -> None:
    """Ask the supervisor of a server to restart a part, or to stop.

    Args:
        root: the server's folder.
        what: name of a part, or `STOP`.

    Raises:
        RunError: no supervisor runs there, or it has no such part.
    """
    if not is_running(root):
        raise RunError(f"no server runs in {root}: start it with `fedrec-server up --root {root}`")
    known = sorted(read_parts(root))
    if what not in (*known, STOP):
        raise RunError(f"there is no part {what!r:.60}: use one of {', '.join(known)}")
    (root / RUN / ASKED / what).touch()


def is_running(root: Path) -> bool:
    """Whether a supervisor runs in a server's folder."""
    try:
        with (root / RUN / LOCK).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_parts(root: Path) -> dict[str, dict[str, Any]]:
    """What is known of the parts of a server; empty where none was started."""
    try:
        return dict(json.loads((root / RUN / PARTS).read_text()))
    except (OSError, ValueError):
        return {}


def state_of(part: dict[str, Any]) -> str:
    """Of a part as `read_parts` gives it: "ready", "starting" or "down"."""
    if part["pid"] is None or not _lives(part["pid"]):
        return "down"
    if part["port"] is None:
        return "ready"
    try:
        socket.create_connection((part["host"], part["port"]), 1.0).close()
    except OSError:
        return "starting"
    return "ready"


def last_line(root: Path, name: str) -> str:
    """The last line that a part has printed."""
    try:
        lines = (root / RUN / f"{name}.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _end_left(folder: Path) -> None:
    """Parts of a supervisor that was killed: their process ids are known, and whether they are still ours."""
    for part in read_parts(folder.parent).values():
        pid = part["pid"]
        if pid is not None and _is_ours(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + STOP_SECONDS
            while _lives(pid) and time.monotonic() < until:
                time.sleep(LOOK_SECONDS)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_ours(pid: int) -> bool:
    try:
        return b"fedrec_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return (
            not Path("/proc").is_dir() or Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] != "Z"
        )
    except (OSError, ValueError):
        return False


def _terminate(children: Sequence[subprocess.Popen[bytes] | None]) -> None:
    living = [child for child in children if child is not None and child.poll() is None]
    for child in living:
        child.terminate()
    until = time.monotonic() + STOP_SECONDS
    for child in living:
        try:
            child.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _ending(code: int) -> str:
    return f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _die_with(parent: int) -> Callable[[], None] | None:
    """For a child: it gets SIGTERM when its parent is gone."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)

    def prepare() -> None:
        library.prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it is gone already
            os._exit(1)

    return prepare
