"""A gateway in this process, and stand-ins for the SuperLink and for nodes and strangers in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from fedrec_server.federation.gateway import Served, serve
from fedrec_server.network.front import listen

#: For what must happen soon, with time to spare on a busy machine.
PATIENT_SECONDS = 30.0


@dataclass
class Upstream:
    """A stand-in for the SuperLink that remembers what reached it, and refuses calls signed "bad"."""

    asked: list[str] = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        request = Request(scope, receive)
        self.asked.append(f"{request.method} {scope['raw_path'].decode()}")
        body = await request.body()
        signature = request.headers.get("x-signature", "")
        echoed = {"x-echo-signature": signature, "x-length": str(len(body))}
        status = 401 if signature == "bad" else 201
        await Response(body[::-1], status, echoed, "application/x-protobuf")(scope, receive, send)


def upstream_config(upstream: Upstream, port: int, folder: Path) -> uvicorn.Config:
    """Over TLS, with the certificate of `make_certificates`."""
    app = Starlette()
    app.router.default = upstream
    return uvicorn.Config(
        app,
        port=port,
        ssl_certfile=str(folder / "superlink.pem"),
        ssl_keyfile=str(folder / "superlink.key"),
        ws="none",
        log_level="warning",
    )


@contextlib.contextmanager
def uvicorn_running(config: uvicorn.Config) -> Iterator[None]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def running(served: Served) -> Iterator[int]:
    """A gateway on a free port; gives the port."""
    listener = listen("127.0.0.1", 0)
    port = int(listener.getsockname()[1])
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(serve(served, listener, stop)), daemon=True
    )
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
        loop.close()


def connect(port: int, source: str = "127.0.0.1", trust: ssl.SSLContext | None = None) -> socket.socket:
    """A connection from an address; with TLS where `trust` is given."""
    plain = socket.create_connection(("127.0.0.1", port), PATIENT_SECONDS, source_address=(source, 0))
    if trust is None:
        return plain
    try:
        return trust.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


def is_open(connection: socket.socket) -> bool:
    """Whether the other side has not ended it."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1 << 16))
    except (ssl.SSLWantReadError, BlockingIOError):
        return True
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for it.

    Raises:
        AssertionError: it did not come.
    """
    deadline = time.monotonic() + PATIENT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.02)
