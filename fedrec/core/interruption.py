"""Ends a computation between two of its steps, when it runs for a caller that may want to stop.

A thread that computes for an app enters `interruptible` with a flag; long loops ask `check` between steps of a few
milliseconds. A thread that has entered nothing pays for one look at an attribute. Out of scope: what the caller does
meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_HERE = threading.local()


class Interrupted(BaseException):
    """The caller wants no result any more; not an `Exception`, so that no handler of errors continues with it."""


@contextmanager
def interruptible(flag: threading.Event) -> Iterator[None]:
    """Computations of this thread end with `Interrupted` soon after the flag is set."""
    before = getattr(_HERE, "flag", None)
    _HERE.flag = flag
    try:
        yield
    finally:
        _HERE.flag = before


def check() -> None:
    """Raises Interrupted when this thread's flag is set."""
    flag: threading.Event | None = getattr(_HERE, "flag", None)
    if flag is not None and flag.is_set():
        raise Interrupted
