"""Waiting for an answer on behalf of someone who would ask again only after a long sleep.

Many wait at once, and messages come to all of them within a moment, often soon after the last ones: as soon as one
is answered the others look at once, and the longer nothing has come the fewer looks are spent. The looks per second
are bounded however many wait. Out of scope: what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

#: Flower's nodes give up on a call after 30 seconds.
HOLD_SECONDS = 25.0
SHORTEST_PAUSE_SECONDS = 0.05
#: Flower announces a message before its content has arrived; who fetches too early waits for a second.
SETTLE_SECONDS = 0.15
#: Of all that wait together, a second after an answer and for ever; each costs about 15 ms of a processor.
MOST_LOOKS_PER_SECOND = 40.0
LEAST_LOOKS_PER_SECOND = 2.0

T = TypeVar("T")


class Patience:
    """Asks again until there is something to say.

    Args:
        hold_seconds: for how long at most; 0: asks once.
    """

    def __init__(self, hold_seconds: float = HOLD_SECONDS) -> None:
        self._hold_seconds = hold_seconds
        self._waiting = 0
        self._answered_at = 0.0
        self._stir = asyncio.Event()

    async def wait(
        self,
        ask: Callable[[], Awaitable[T]],
        is_answer: Callable[[T], bool],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """The first answer, or what was said last when the time is over or who asked has gone.

        Args:
            ask: may be called many times.
            is_answer: whether it is worth passing on before the time is over.
            is_gone: a message must not be fetched for someone who will not get it.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._hold_seconds
        self._waiting += 1
        try:
            while not is_answer(said := await ask()) and now() < deadline:
                await self._pause(now())
                if await is_gone():
                    return said
        finally:
            self._waiting -= 1
        if is_answer(said) and self._hold_seconds:
            self._wake(now())
            await asyncio.sleep(SETTLE_SECONDS)
        return said

    def _wake(self, now: float) -> None:
        quiet_seconds, self._answered_at = now - self._answered_at, now
        if quiet_seconds > 1.0:  # else they look often anyway
            self._stir.set()
            self._stir = asyncio.Event()

    async def _pause(self, now: float) -> None:
        looks = MOST_LOOKS_PER_SECOND / max(now - self._answered_at, 1.0)
        looks = max(looks, LEAST_LOOKS_PER_SECOND)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stir.wait(), max(self._waiting / looks, SHORTEST_PAUSE_SECONDS))
