"""The gateway, over real TLS sockets: what nodes need passes unchanged, everything else ends in 404."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from fedrec.processes import free_ports
from fedrec_server.certificates import make_certificates
from fedrec_server.gateway import MAX_HEADERS, is_open, make_app, server_config

MAX_BODY = 1 << 20


@dataclass
class Upstream:
    """A stand-in for the SuperLink that remembers what reached it."""

    asked: list[str] = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        request = Request(scope, receive)
        self.asked.append(f"{request.method} {scope['raw_path'].decode()}")
        body = await request.body()
        echoed = {"x-echo-signature": request.headers.get("x-signature", ""), "x-length": str(len(body))}
        await Response(body[::-1], 201, echoed, "application/x-protobuf")(scope, receive, send)


@contextlib.contextmanager
def served(config: uvicorn.Config) -> Iterator[None]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass(frozen=True)
class Setup:
    upstream: Upstream
    client: httpx.Client
    port: int
    trust: ssl.SSLContext

    def raw(self, request: bytes) -> bytes:
        """Bytes as they are, past every client's clean-up of paths."""
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        with self.trust.wrap_socket(plain, server_hostname="localhost") as tls:
            tls.sendall(request)
            return tls.recv(65536)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder: Path = tmp_path_factory.mktemp("tls")
    ca = make_certificates(folder, ("superlink", "gateway"))
    up_port, port = free_ports(2)
    upstream, inner = Upstream(), Starlette()
    inner.router.default = upstream
    up = server_config(inner, "127.0.0.1", up_port, folder / "superlink.pem", folder / "superlink.key")
    app = make_app(f"https://127.0.0.1:{up_port}", ca, MAX_BODY)
    front = server_config(app, "127.0.0.1", port, folder / "gateway.pem", folder / "gateway.key")
    trust = ssl.create_default_context(cafile=str(ca))
    client = httpx.Client(base_url=f"https://localhost:{port}", verify=trust, trust_env=False)
    with served(up), served(front), client:
        yield Setup(upstream, client, port, trust)


def test_node_api_and_health_pass_with_body_headers_and_status(setup: Setup) -> None:
    answer = setup.client.post(
        "/v1/fleet/pull-messages", content=b"abc" * 1000, headers={"x-signature": "s1g"}
    )
    assert answer.status_code == 201 and answer.content == b"cba" * 1000
    assert answer.headers["x-echo-signature"] == "s1g" and answer.headers["x-length"] == "3000"
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert setup.client.get("/health").status_code == 201


CLOSED = [
    "/",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..;/control/start-run",
    "//v1/fleet/pull-messages",
    "/v1//fleet/pull-messages",
    "/v1/fleet//pull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages/x",
    "/v1%2ffleet/pull-messages",
    "/v1/fleet%2fpull-messages",
    "/V1/FLEET/pull-messages",
    "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/pull-messages%00",
    "/v1/fleet/pull\\..\\control",
    "/health/",
    "/health/../v1/control/start-run",
    "/./v1/fleet/pull-messages",
    "/v1/control/../fleet/pull-messages",
    "/v1/fleet/..%252fcontrol%252fstart-run",
    "/v1/control/start-run#/v1/fleet/pull-messages",
    "http://127.0.0.1/v1/control/start-run",
    "*",
]


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_path_gets_upstream(setup: Setup, path: str, method: str) -> None:
    before = len(setup.upstream.asked)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer = setup.raw(head.encode())
    assert answer.split()[1] in (b"404", b"400")
    assert len(setup.upstream.asked) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_closed(setup: Setup, method: str) -> None:
    before = len(setup.upstream.asked)
    head = f"{method} /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert setup.raw(head.encode()).split()[1] in (b"404", b"400")
    assert len(setup.upstream.asked) == before
    assert not is_open("POST", b"/health", b"")


def test_large_bodies_are_refused_whether_announced_or_not(setup: Setup) -> None:
    assert setup.client.post("/v1/fleet/push-object", content=b"x" * MAX_BODY).status_code == 201
    before = len(setup.upstream.asked)
    assert setup.client.post("/v1/fleet/push-object", content=b"x" * (MAX_BODY + 1)).status_code == 413
    chunks = (b"x" * 65536 for _ in range(20))
    assert setup.client.post("/v1/fleet/push-object", content=chunks).status_code == 413
    assert len(setup.upstream.asked) == before


def test_many_or_long_headers_are_refused(setup: Setup) -> None:
    before = len(setup.upstream.asked)
    many = {f"x-{k}": "1" for k in range(MAX_HEADERS + 1)}
    assert setup.client.post("/v1/fleet/pull-messages", headers=many).status_code == 431
    long = setup.client.post("/v1/fleet/pull-messages", headers={"x-long": "y" * 40_000})
    assert long.status_code in (400, 431)
    assert len(setup.upstream.asked) == before


def test_two_lengths_cannot_smuggle_a_second_request(setup: Setup) -> None:
    before = len(setup.upstream.asked)
    smuggled = (
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        b"Content-Length: 60\r\n\r\nabcdPOST /v1/control/start-run HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    assert setup.raw(smuggled).split()[1] == b"400"
    assert not any("control" in asked for asked in setup.upstream.asked[before:])


def test_a_client_without_the_private_ca_refuses_the_gateway(setup: Setup) -> None:
    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        httpx.get(f"https://localhost:{setup.port}/health", trust_env=False)


def test_a_dead_superlink_is_a_bad_gateway(setup: Setup, tmp_path: Path) -> None:
    ca = make_certificates(tmp_path, ("gateway",))
    dead, port = free_ports(2)
    app = make_app(f"https://127.0.0.1:{dead}", ca)
    config = server_config(app, "127.0.0.1", port, tmp_path / "gateway.pem", tmp_path / "gateway.key")
    with (
        served(config),
        httpx.Client(verify=ssl.create_default_context(cafile=str(ca)), trust_env=False) as client,
    ):
        assert client.post(f"https://localhost:{port}/v1/fleet/pull-messages").status_code == 502


def test_private_files_are_private(tmp_path: Path) -> None:
    make_certificates(tmp_path, ("gateway",))
    assert (tmp_path / "gateway.key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "ca.key").exists()
