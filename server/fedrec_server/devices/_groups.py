"""Work of many callers that one thread does together: one transaction for many devices."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import grpc

from fedrec_server.network.refusals import Refused

T = TypeVar("T")
R = TypeVar("R")
Entry = tuple[Callable[[list[Any]], Sequence[Any]], Any, Future[Any]]

#: A caller waits for the database for so long.
WAIT_SECONDS = 60.0


class Grouped:
    """Runs work in a thread of its own until it is closed; callers wait for their part of the results.

    What comes while a group is at work is in the next group, so that groups grow with the load.

    Args:
        name: of the thread.
        most: items that are done together.
        gather_seconds: for which the first one waits for others.
    """

    def __init__(self, name: str, most: int, gather_seconds: float = 0.0) -> None:
        self._most, self._gather_seconds = most, gather_seconds
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[list[T]], Sequence[R]], item: T) -> R:
        """Have `work` done with this item among others; its result for this item.

        Raises:
            Refused: it is closing, or the database did not answer in time.
            Exception: of the work; all items of its group share it.
        """
        future: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "stopping", retry=True)
            self._waiting.append((work, item, future))
            self._changed.notify()
        try:
            return future.result(WAIT_SECONDS)
        except TimeoutError as error:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "try again", retry=True) from error

    def close(self) -> None:
        """Do what is waiting, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
            if self._gather_seconds:
                time.sleep(self._gather_seconds)
            with self._changed:
                group = self._take()
            work, futures = group[0][0], [future for _, _, future in group]
            try:
                results = work([item for _, item, _ in group])
            except Exception as error:
                for future in futures:
                    future.set_exception(error)
            else:
                for future, result in zip(futures, results, strict=True):
                    future.set_result(result)

    def _take(self) -> list[Entry]:
        """The next group: all that wait for the same work as the first one."""
        work = self._waiting[0][0]
        group: list[Entry] = []
        rest: deque[Entry] = deque()
        for entry in self._waiting:
            (group if entry[0] == work and len(group) < self._most else rest).append(entry)
        self._waiting = rest
        return group
