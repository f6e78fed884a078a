"""The process of one training session: holds the node in its memory and runs a SuperNode that asks it.

Started by `run_task`. What it needs comes as one line over its standard input, so that nothing personal stands in a
command line, an environment or a file; the line stays open, and when it closes because the app has died, the whole
session dies with it. The first release is charged over a socket pair that no other process has; when that fails,
the session ends here. Else it ends when it is killed: a session has no orderly end of its own.

    FOLDER/node/socket       of the node, for this session's own processes
    FOLDER/node/sent.jsonl   one line per answer that left: kind, round, bytes
    FOLDER/node/bundle.json  which app bundle the signed task names
    FOLDER/key               of the SuperNode, made for this campaign alone
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from fedrec.wire.bundle import write_expected
from fedrec_client.node.forward import SENT, listen

_ending = threading.Lock()


def main() -> None:
    """Read the session from standard input and serve it until killed."""
    folder, wanted = Path(sys.argv[1]), json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=lambda: _die_with_the_app(folder), daemon=True).start()
    node_folder = folder / "node"
    node_folder.mkdir(mode=0o700)
    (node_folder / SENT).touch(0o600)
    write_expected(node_folder, wanted["bundle"])
    (folder / "superlink.crt").write_text(wanted["superlink_ca"])
    (folder / "key").touch(0o600)
    (folder / "key").write_text(wanted["node_key"])
    # The SuperNode needs as long to start as this process to import what trains; who asks early waits.
    listener = listen(node_folder)
    supernode = subprocess.Popen(
        supernode_command(folder, wanted["superlink"], wanted["port"]), stdin=subprocess.DEVNULL
    )
    threading.Thread(target=lambda: _end_with(supernode), daemon=True).start()
    from fedrec_client.training._charging import AskedCharge, NotCharged
    from fedrec_client.training._host import make_node, serve

    try:
        serve(make_node(wanted), listener, node_folder, AskedCharge(socket.socket(fileno=int(sys.argv[2]))))
    except NotCharged:
        _end(folder)


def supernode_command(folder: Path, superlink: str, port: int) -> list[str]:
    """Command of the SuperNode and of what serves its messages; paths and addresses only."""
    command = [sys.executable, "-P", "-m", "fedrec_client.node.node_program", "--elsewhere"]
    command += ["--folder", str(folder / "supernode"), "--node-dir", str(folder / "node")]
    command += ["--superlink", superlink, "--root-certificates", str(folder / "superlink.crt")]
    return [*command, "--key", str(folder / "key"), "--port", str(port)]


def _die_with_the_app(folder: Path) -> None:
    """The line closes when the app's process is gone, however it went."""
    while sys.stdin.buffer.read(1):
        pass
    _end(folder)


def _end(folder: Path) -> None:
    """The whole session, its files first; who comes second waits for the kill."""
    _ending.acquire()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _end_with(supernode: subprocess.Popen[bytes]) -> None:
    """A session without its SuperNode is over."""
    os._exit(supernode.wait() or 1)


if __name__ == "__main__":
    main()
