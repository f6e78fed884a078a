"""An exchange that is let go of when its job is paused or aborted, and not at the end of its deadline.

The last two stages are given a few seconds more, since the sum is there then and its devices have paid. Out of scope:
what devices are told (the cohort is closed by its collector).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from fedrec.core.errors import AggregationAborted
from fedrec.core.messages import Exchange, Failure, Reply, Request, Summed, SummingExchange

LOOK_SECONDS = 0.1
#: For sums that only need to be opened.
GRACE_SECONDS = 10.0
_LAST = ("confirm", "unmask")
T = TypeVar("T")


class InterruptibleExchange:
    """See the module's text.

    Args:
        exchange: to devices.
        stop: asked while it waits.
    """

    def __init__(self, exchange: Exchange, stop: Callable[[], bool]) -> None:
        self._exchange, self._stop = exchange, stop

    def nodes(self) -> list[str]:
        """See `Exchange`."""
        return self._exchange.nodes()

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """See `Exchange`; raises AggregationAborted when it is stopped."""
        return self._watched(requests, lambda: self._exchange.exchange(requests, deadline_seconds))

    def _watched(self, requests: Mapping[str, Request], ask: Callable[[], T]) -> T:
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(ask())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, name="exchange", daemon=True)
        thread.start()
        last = any(request.kind in _LAST for request in requests.values())
        until: float | None = None
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if until is None and self._stop():
                until = time.monotonic() + (GRACE_SECONDS if last else 0.0)
            if until is not None and thread.is_alive() and time.monotonic() >= until:
                raise AggregationAborted("the job was paused or stopped")
        if failure:
            raise failure[0]
        return outcome[0]


class _Summing(InterruptibleExchange):
    """Of an exchange that adds up by itself."""

    def __init__(self, exchange: SummingExchange, stop: Callable[[], bool]) -> None:
        super().__init__(exchange, stop)  # type: ignore[arg-type]
        self._summing = exchange

    def exchange_summed(
        self, requests: Mapping[str, Request], deadline_seconds: float, dtype: str, length: int
    ) -> Summed:
        """See `SummingExchange`; raises AggregationAborted when it is stopped."""
        return self._watched(
            requests, lambda: self._summing.exchange_summed(requests, deadline_seconds, dtype, length)
        )


def interruptible(exchange: Exchange, stop: Callable[[], bool]) -> Exchange:
    """The exchange, let go of when it is stopped; it adds up by itself if it did before."""
    if isinstance(exchange, SummingExchange):
        return _Summing(exchange, stop)
    return InterruptibleExchange(exchange, stop)
