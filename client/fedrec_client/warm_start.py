"""Starts the process of a message by forking one that has everything imported already.

A SuperNode starts the program `flwr-clientapp` for every message, and importing Flower and this library takes it
longer than most messages do. This program runs a SuperNode under a PATH on which that name leads to a request to
*this* process: it forks, and the fork runs Flower's own program on the same arguments, streams and environment.
Each message still has a process of its own that ends with it; nothing of Flower is changed. When the request cannot
be made, Flower's program is started as usual.

    python -m fedrec_client.warm_start --folder FOLDER -- flower-supernode ...

    FOLDER/flwr-clientapp    found first on the PATH; runs `warm_request`
    FOLDER/socket            of this process, for its own user only

Needs an operating system with fork and sockets that pass open files; elsewhere start the SuperNode itself. Out of
scope: keeping a SuperNode running.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType

import httpx

from fedrec.errors import RunError
from fedrec_client import warm_request

PROGRAM = "flwr-clientapp"
STREAMS = 3
MAX_REQUEST_BYTES = 1 << 20
REQUEST_SECONDS = 5.0
TICK_SECONDS = 0.2
STOP_SECONDS = 5.0
Program = Callable[[], object]


class _StopRequested(Exception):  # noqa: N818 - no error
    """A signal asked to stop."""


def load(*, node: bool = True) -> Program:
    """Flower's program with what it and a node import; whoever forks afterwards has them already.

    Args:
        node: False: messages are handed on to another process, which has the node.

    Raises:
        RunError: Flower is not installed.
    """
    found = entry_points(group="console_scripts", name=PROGRAM)
    if not found:
        raise RunError(f"{PROGRAM} is not installed: pip install 'fedrec[server]'")
    program: Program = next(iter(found)).load()
    import fedrec_client.flower_app

    if node:
        with suppress(ImportError):  # a node that never trains needs no more
            import fedrec_client.node  # noqa: F401
    with httpx.Client():  # imports its carrier when the first is made
        pass
    # What is there now is never freed: forks share its pages as long as nobody counts references in them.
    gc.collect()
    gc.freeze()
    return program


def serve(command: Sequence[str], folder: Path, program: Program) -> int:
    """Run `command` and start `program` for it whenever it starts the program of that name; its exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    child: subprocess.Popen[bytes] | None = None
    try:
        with _listening(folder) as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
            child = subprocess.Popen(list(command), env=os.environ | {"PATH": path})
            while child.poll() is None:
                if selector.select(TICK_SECONDS):
                    _answer(listener, program)
                _collect(child.pid)
            return child.returncode
    except _StopRequested:
        return _end(child)


def write_program(folder: Path) -> None:
    """Put the program that makes requests into `folder`, for its owner only."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    fallback = Path(sys.executable).parent / PROGRAM
    words = [sys.executable, "-IS", warm_request.__file__, str(folder), str(fallback)]
    script = folder / PROGRAM
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)


@contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        (folder / "socket").unlink(missing_ok=True)
        # A path in an address may have about a hundred characters only.
        os.chdir(folder)
        try:
            listener.bind("socket")
            Path("socket").chmod(0o600)
        finally:
            os.chdir(here)
        listener.listen(8)
        yield listener


def _answer(listener: socket.socket, program: Program) -> None:
    """Fork for one request; a request that cannot be read is dropped, and its maker helps itself."""
    caller, _ = listener.accept()
    with caller:
        caller.settimeout(REQUEST_SECONDS)
        streams: list[int] = []
        try:
            text, streams, _, _ = socket.recv_fds(caller, MAX_REQUEST_BYTES, STREAMS)
            while not text.endswith(b"\n") and (more := caller.recv(MAX_REQUEST_BYTES)):
                text += more
            wanted = json.loads(text)
            if len(streams) == STREAMS and os.fork() == 0:
                _become(wanted, streams, listener, caller, program)
        except (OSError, ValueError):
            return
        finally:
            for stream in streams:
                os.close(stream)


def _become(
    wanted: dict[str, object],
    streams: list[int],
    listener: socket.socket,
    caller: socket.socket,
    program: Program,
) -> None:
    """The fork: run the program as if it had been started by name; never returns."""
    status = 1
    try:
        listener.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        arguments, environment = wanted["arguments"], wanted["environment"]
        assert isinstance(arguments, list) and isinstance(environment, dict)
        caller.sendall(warm_request.ACCEPTED)
        os.chdir(str(wanted["folder"]))
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [PROGRAM, *map(str, arguments)]
        gc.unfreeze()
        program()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            caller.sendall(b"%d\n" % status)
        # Whatever this process would do at its end is its parent's business.
        os._exit(status)


def _collect(command: int) -> None:
    """Take notice of the end of forks, but not of the command's."""
    with suppress(ChildProcessError):
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid == command:
                return
            os.waitpid(ended.si_pid, 0)


def _end(child: subprocess.Popen[bytes] | None) -> int:
    if child is None:
        return 0
    child.terminate()
    try:
        return child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopRequested


def main() -> None:
    """Run the SuperNode until it ends or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m fedrec_client.warm_start", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for this program's own files")
    parser.add_argument("--elsewhere", action="store_true", help="the node is in another process")
    parser.add_argument("command", nargs="+", help="of the SuperNode")
    given = parser.parse_args()
    folder = given.folder.resolve()
    write_program(folder)
    sys.exit(serve(given.command, folder, load(node=not given.elsewhere)))


if __name__ == "__main__":
    main()
