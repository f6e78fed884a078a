"""Ends calls that wait for their caller too long: one thread for all of them."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25


class Watchdog:
    """Looks again and again; what is not over in its time is ended, late by a tick at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[float, Callable[[], object]]] = {}
        self._numbers = itertools.count()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def within(self, seconds: float, end: Callable[[], object]) -> Iterator[None]:
        """Call `end` from another thread when the block takes longer."""
        number = next(self._numbers)
        with self._lock:
            self._watched[number] = (time.monotonic() + seconds, end)
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(number, None)

    def close(self) -> None:
        """Watch no more."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            for end in self._late():
                try:
                    end()
                except Exception:
                    log.exception("a call could not be ended")

    def _late(self) -> list[Callable[[], object]]:
        """What is late, once each."""
        now = time.monotonic()
        with self._lock:
            late = [number for number, (then, _) in self._watched.items() if then < now]
            return [self._watched.pop(number)[1] for number in late]
