"""Accepts connections for a service: each is admitted or closed before it has said a word, and served by a task.

Ending a connection is cancelling its task. Out of scope: what is said on it.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Awaitable, Callable

from fedrec.core.errors import ServiceError
from fedrec_server.network._addresses import network
from fedrec_server.network.admission import Admission, Entry

log = logging.getLogger(__name__)

BACKLOG = 1024
#: After an error of the operating system, e.g. no free file descriptor.
PAUSE_SECONDS = 0.2
#: Files that a process needs beside its connections.
OTHER_FILES = 384

Serve = Callable[[socket.socket, Entry], Awaitable[None]]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one.

    Raises:
        ServiceError: it cannot listen there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name with addresses of both kinds is served at the older, which every caller can reach.
        family, kind, number, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        made = socket.socket(family, kind, number)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(BACKLOG)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
    except (OSError, OverflowError) as error:
        raise ServiceError(f"cannot listen on {host}:{port} ({error}): use a free port") from error
    return made


def allow_files(connections: int) -> None:
    """Raise the process's limit on open files as far as needed and permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            log.warning("%d open files are allowed, %d are needed: raise `ulimit -n`", allowed, wanted)


class Front:
    """Accepts on one socket; see the module.

    Args:
        listener: bound and listening, not blocking; closed at the end.
        admission: who is let in.
        serve: one connection; owns the socket.
    """

    def __init__(self, listener: socket.socket, admission: Admission, serve: Serve) -> None:
        self._listener, self._admission, self._serve = listener, admission, serve
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event, grace_seconds: float = 2.0) -> None:
        """Accept until stopped; then what is being answered may end, and the rest is cut."""
        accepting = asyncio.create_task(self._accept())
        try:
            await stop.wait()
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            self._listener.close()
            await self._finish(grace_seconds)

    async def _finish(self, grace_seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + grace_seconds
        while self._admission.busy and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._start(connection, network(str(peer[0])))
            # A connection that waits is accepted without a pause: the others get their turn between any two.
            await asyncio.sleep(0)

    def _start(self, connection: socket.socket, address: str) -> None:
        task: asyncio.Task[None] | None = None
        entry = self._admission.admit(address, lambda: task and task.cancel())
        if entry is None:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._one(connection, entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also of a task that is cancelled before it begins.
        task.add_done_callback(lambda _: connection.close())

    async def _one(self, connection: socket.socket, entry: Entry) -> None:
        try:
            await self._serve(connection, entry)
        except (OSError, TimeoutError) as error:
            log.debug("a connection ended: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._admission.leave(entry)
