"""The program of a node or of a device's session: a SuperNode, and a process per message that runs installed code.

A SuperNode left to itself starts Flower's own programs, which run whatever app SuperLink sends. This program starts
it so that it starts nothing (`--isolation process`), takes its messages from it under a secret of their own, and
forks for each: importing Flower and this library takes longer than most messages do, and a fork has it already.
The fork checks the message's bundle, serves the message with the installed component (`flower_tasks`) and ends. A
message is served in no other way: when this program dies, so does the SuperNode, and nothing takes its place.

    python -P -m fedrec_client.node.node_program --folder FOLDER --node-dir DIR --superlink HOST:PORT
        --root-certificates FILE --key FILE --port PORT

    FOLDER/secret    shared with the SuperNode, for its owner only; new at every start

Needs an operating system with fork, and the Flower release that it was written for: with another one it refuses to
start. Out of scope: keeping it running.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fedrec.core.errors import EnvironmentProblem, FedrecError
from fedrec.core.files import write_secret
from fedrec.core.processes import program

if TYPE_CHECKING:
    from fedrec_client.node.flower_tasks import Server, Task

#: How a message is served is Flower's affair and changes between its releases; this is the one that was read.
FLOWER = "1.41."
#: How often a node looks for a message to fork for. Much shorter costs: the fork comes before the message's content,
#: and then waits for a second.
POLL_SECONDS = 0.5
STOP_SECONDS = 5.0
SECRET_BYTES = 32
PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGINT)


class _StopRequested(Exception):  # noqa: N818 - no error
    """A signal asked to stop."""


def load(address: str, folder: Path) -> Server:
    """What serves messages, with everything imported; forks made afterwards have it already.

    Args:
        address: of the SuperNode's own API.
        folder: of the node.

    Raises:
        EnvironmentProblem: this machine or its Flower is not one on which nodes run installed code only.
    """
    check_environment()
    try:
        from fedrec_client.node.flower_tasks import Server
    except ImportError as error:
        raise EnvironmentProblem(
            f"Flower lacks what a node needs ({error}): install flwr {FLOWER}*"
        ) from error
    with suppress(ImportError):  # a node that never trains needs no more
        import fedrec_client.node.node_folder  # noqa: F401
    return Server(address, folder)


def check_environment() -> None:
    """The system and the Flower release must be ones for which this program was written.

    Raises:
        EnvironmentProblem: they are not.
    """
    try:
        installed = version("flwr")
    except PackageNotFoundError:
        raise EnvironmentProblem("Flower is not installed: pip install 'fedrec[server]'") from None
    if not installed.startswith(FLOWER):
        raise EnvironmentProblem(
            f"flwr {installed} is installed: expected {FLOWER}*, for which it is known that a node runs nothing "
            "that a server sends; install that one"
        )
    if not hasattr(os, "fork"):
        raise EnvironmentProblem("this system cannot fork: run the node on Linux or macOS")


def supernode_command(given: argparse.Namespace, secret: Path) -> list[str]:
    """Command of the SuperNode: it starts no program, and hands messages to who knows the secret."""
    command = [program("flower-supernode"), "--superlink", given.superlink]
    command += ["--root-certificates", str(given.root_certificates)]
    command += ["--auth-supernode-private-key", str(given.key)]
    command += ["--host", "127.0.0.1", "--port", str(given.port)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    return [*command, "--node-config", f"node-dir={json.dumps(str(given.node_dir))}"]


def run(command: list[str], acquire: Callable[[], Task | None], serve: Callable[[Task], None]) -> int:
    """Run the SuperNode and fork for each of its tasks until it ends or a signal comes; its exit status.

    Args:
        command: of the SuperNode.
        acquire: the next task, or None.
        serve: run in a fork of its own.

    Raises:
        FederationError: the SuperNode does not talk to this program.
    """
    for number in STOPS:
        signal.signal(number, _stop)
    forks: set[int] = set()
    child: subprocess.Popen[bytes] | None = None
    try:
        # It starts no program. A PATH that is no folder makes that certain; an empty one is the current folder.
        child = subprocess.Popen(
            command,
            env=os.environ | {"PATH": os.devnull},
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        # What is there now is never freed: forks share its pages as long as no references in them are counted.
        gc.collect()
        gc.freeze()
        while child.poll() is None:
            task = acquire()
            if task is not None:
                forks.add(_fork(serve, task))
            forks = {pid for pid in forks if not _has_ended(pid)}
            time.sleep(POLL_SECONDS)
        return child.returncode
    except _StopRequested:
        return 0 if child is None else _end(child)
    finally:
        if child is not None and child.poll() is None:
            _end(child)
        for pid in forks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(serve: Callable[[Task], None], task: Task) -> int:
    """A process for one task; its id."""
    # A signal that came between the fork and the next lines would make the fork end what is its parent's.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        return pid
    status = 1
    try:
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        _die_with_parent()
        gc.unfreeze()
        serve(task)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Whatever this process would do at its end is its parent's business.
        os._exit(status)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _die_with_parent() -> None:
    """Where the system can: this process is killed when its parent is, however that went."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes]) -> int:
    child.terminate()
    try:
        return child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopRequested


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -P -m fedrec_client.node.node_program", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for this program's own files")
    parser.add_argument("--node-dir", type=Path, required=True, help="folder of the node")
    parser.add_argument("--superlink", required=True, help="address of SuperLink or its gateway, host:port")
    parser.add_argument("--root-certificates", type=Path, required=True, help="whom to believe, PEM")
    parser.add_argument("--key", type=Path, required=True, help="private key of the SuperNode")
    parser.add_argument("--port", type=int, required=True, help="of the SuperNode's own API, on 127.0.0.1")
    return parser.parse_args(arguments)


def main(prepare: Callable[[Server], Server] = lambda server: server) -> None:
    """Run a node until its SuperNode ends or a signal comes; exit codes as in `fedrec.core.errors`.

    Args:
        prepare: for programs that serve with an installed component of their own.
    """
    given = parse()
    try:
        folder = given.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        server = prepare(load(f"127.0.0.1:{given.port}", given.node_dir))
        secret = secrets.token_bytes(SECRET_BYTES)
        (folder / "secret").unlink(missing_ok=True)
        write_secret(folder / "secret", secret)
        from fedrec_client.node.flower_tasks import Tasks

        status = run(
            supernode_command(given, folder / "secret"), Tasks(server.address, secret).take, server.serve
        )
    except FedrecError as error:
        sys.stderr.write(f"error: {error}\n")
        status = error.exit_code
    sys.exit(status)


if __name__ == "__main__":
    main()
