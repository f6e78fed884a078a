"""Notices within seconds that a session waits for nothing: its campaign is over, or its server cannot be reached.

A SuperNode tries again for ever, and a coordinator that has died sends no word. So while a session is silent the
model service is asked whether the campaign goes on; and until the first answer the address of the SuperLink is
tried. A model service that does not answer means nothing. Out of scope: ending the session (`run_task`).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.request import getproxies

from fedrec.core.errors import FedrecError

LOOK_SECONDS = 2.0
#: A session that has answered within this time is not silent.
SILENT_SECONDS = 5.0
#: For so long the SuperLink may be unreachable before the first answer.
UNREACHABLE_SECONDS = 10.0
CONNECT_SECONDS = 3.0


class Watch:
    """Of one session, from a thread of its own while it is entered.

    Args:
        superlink: "host:port".
        goes_on: whether the campaign does, by the model service.
        progress: grows with every answer of the session; 0: none yet.

    Attributes:
        reason: why the session is over; empty: it is not.
    """

    def __init__(self, superlink: str, goes_on: Callable[[], bool], progress: Callable[[], int]) -> None:
        self.reason = ""
        self._superlink, self._goes_on, self._progress = superlink, goes_on, progress
        self._end = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._look, name="campaign-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()

    def _look(self) -> None:
        seen, moved_at = 0, time.monotonic()
        reached_at = time.monotonic()
        while not self._end.wait(LOOK_SECONDS):
            if (now := self._progress()) != seen:
                seen, moved_at = now, time.monotonic()
            if seen or self._reaches_superlink():
                reached_at = time.monotonic()
            if time.monotonic() - reached_at >= UNREACHABLE_SECONDS:
                self.reason = "the campaign's server cannot be reached"
                return
            if time.monotonic() - moved_at >= SILENT_SECONDS and not self._campaign_goes_on():
                self.reason = "the campaign is over"
                return

    def _campaign_goes_on(self) -> bool:
        try:
            return self._goes_on()
        except FedrecError:
            return True

    def _reaches_superlink(self) -> bool:
        """Whether something answers there; behind a proxy that cannot be told."""
        if getproxies().get("https"):
            return True
        host, _, port = self._superlink.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError):
            return False
        return True
