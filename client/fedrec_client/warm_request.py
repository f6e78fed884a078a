"""Asks the process of `warm_start` to run Flower's program in a fork; otherwise runs the program itself.

Run by path with the standard library only, because it must start at once:

    python -IS warm_request.py FOLDER PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import json
import os
import socket
import sys

ACCEPTED = b"+"
ANSWER_BYTES = 16


def main() -> None:
    """Leave with the status of the fork, or become the program."""
    folder, program, *arguments = sys.argv[1:]
    wanted = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.chdir(folder)
        caller.connect("socket")
        text = json.dumps(wanted).encode() + b"\n"
        sent = socket.send_fds(caller, [text], [0, 1, 2])
        caller.sendall(text[sent:])
        accepted = caller.recv(len(ACCEPTED)) == ACCEPTED
    except OSError:
        accepted = False
    if not accepted:
        os.chdir(str(wanted["folder"]))
        os.execv(program, [program, *arguments])
    answer = caller.recv(ANSWER_BYTES)
    sys.exit(int(answer) if answer else 1)


if __name__ == "__main__":
    main()
