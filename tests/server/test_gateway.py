"""The gateway, over real TLS sockets: what nodes need passes unchanged, everything else ends in 404."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from gateway_helpers import Upstream, running, upstream_config, uvicorn_running

from fedrec.core.processes import free_ports
from fedrec_server.federation.gateway import GatewayLimits, Served, is_open
from fedrec_server.network.certificates import make_certificates
from fedrec_server.network.http_connection import MAX_HEADERS

MAX_BODY = 1 << 20


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
    (up_port,) = free_ports(1)
    upstream = Upstream()
    served = Served(
        f"https://127.0.0.1:{up_port}",
        ca,
        folder / "gateway.pem",
        folder / "gateway.key",
        limits=GatewayLimits(max_body_bytes=MAX_BODY),
    )
    trust = ssl.create_default_context(cafile=str(ca))
    with uvicorn_running(upstream_config(upstream, up_port, folder)), running(served) as port:
        client = httpx.Client(base_url=f"https://localhost:{port}", verify=trust, trust_env=False)
        with client:
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
    assert not is_open("POST", b"/health")


def test_large_bodies_are_refused_whether_announced_or_not(setup: Setup) -> None:
    assert setup.client.post("/v1/fleet/push-object", content=b"x" * MAX_BODY).status_code == 201
    before = len(setup.upstream.asked)
    assert setup.client.post("/v1/fleet/push-object", content=b"x" * (MAX_BODY + 1)).status_code == 413
    chunks = (b"x" * 65536 for _ in range(20))
    assert setup.client.post("/v1/fleet/push-object", content=chunks).status_code == 411
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
    (dead,) = free_ports(1)
    files = (ca, tmp_path / "gateway.pem", tmp_path / "gateway.key")
    with (
        running(Served(f"https://127.0.0.1:{dead}", *files)) as port,
        httpx.Client(verify=ssl.create_default_context(cafile=str(ca)), trust_env=False) as client,
    ):
        assert client.post(f"https://localhost:{port}/v1/fleet/pull-messages").status_code == 502


def test_private_files_are_private(tmp_path: Path) -> None:
    make_certificates(tmp_path, ("gateway",))
    assert (tmp_path / "gateway.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
