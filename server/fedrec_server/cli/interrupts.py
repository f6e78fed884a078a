"""Ctrl-C: once asks to stop at the end of the round, twice stops at once. SIGTERM asks, too."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from fedrec_server.cli.answer import notice


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets `asked`; the second SIGINT interrupts.

    Args:
        answer: what the first one prints.
    """

    def __init__(
        self, answer: str = "stopping at the end of this round, with a checkpoint; Ctrl-C again stops at once"
    ) -> None:
        self.asked = False
        self._answer = answer
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        notice(self._answer, "yellow")
