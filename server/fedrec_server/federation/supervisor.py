"""Keeps one program running: starts it again, with growing pauses, until told to stop.

A SuperNode needs this because Flower refuses a node's key for about a minute after the node was killed: the
program then ends at once, again and again, until it is accepted. On a real host systemd or Docker does it.

Run as `python -m fedrec_server.federation.supervisor COMMAND...`; SIGTERM ends the program and the supervisor.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 8.0
#: A program that ran this long was accepted; the next pause is short again.
STEADY_SECONDS = 30.0
STOP_SECONDS = 5.0


class _StopRequested(Exception):  # noqa: N818 - no error
    """A signal asked to stop."""


def supervise(command: Sequence[str]) -> None:
    """Run `command` for ever; returns after SIGTERM or SIGINT, when the program has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    pause, child = FIRST_PAUSE_SECONDS, None
    try:
        while True:
            started = time.monotonic()
            child = subprocess.Popen(list(command))
            child.wait()
            steady = time.monotonic() - started > STEADY_SECONDS
            pause = FIRST_PAUSE_SECONDS if steady else min(pause * 2, LONGEST_PAUSE_SECONDS)
            time.sleep(pause)
    except _StopRequested:
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopRequested


if __name__ == "__main__":
    supervise(sys.argv[1:])
