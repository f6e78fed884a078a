"""The only address that nodes are given: a TLS proxy that lets Flower's node API through and nothing else.

Flower serves its node API and its control API on one port, and the control API knows no authentication: whoever
reaches it can run code on the server and on every node. The path is compared as it came over the wire, before any
decoding, against a pattern without dots, escapes or doubled slashes, so that no trick can mean another path
upstream. Node authentication itself is Flower's and passes through unchanged.

A node that is told that there is no message for it sleeps for three seconds, which is most of the time of a short
stage. So a node that asks for messages is answered when there is one, or after a while: the gateway asks on its
behalf, again and again (`fedrec_server.patience`).

Out of scope: authenticating nodes, rate limits per node. Run as `python -m fedrec_server.gateway --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedrec_server.patience import HOLD_SECONDS, Patience

FLEET_PATH = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
HEALTH_PATH = b"/health"
PULL_PATH = b"/v1/fleet/pull-messages"
#: Flower cuts arrays into pieces of 5 MiB.
MAX_BODY_BYTES = 16 << 20
MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS = 64
BODY_SECONDS = 60.0
UPSTREAM_SECONDS = 60.0
MAX_CONNECTIONS = 512
#: Headers that speak about one connection (RFC 9110, section 7.6.1), or that the next hop sets itself.
HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade host content-length".split()
)


class Gateway:
    """An ASGI application that forwards permitted requests to `client`'s base address.

    Args:
        client: whose base address is the SuperLink's.
        max_body_bytes: of a request.
        patience: with which it waits for messages of a node.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        max_body_bytes: int = MAX_BODY_BYTES,
        patience: Patience | None = None,
    ) -> None:
        self._client = client
        self._max_body_bytes = max_body_bytes
        self._patience = patience or Patience()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path: bytes = request.scope.get("raw_path") or b""
        if not is_open(request.method, path, request.scope["query_string"]):
            return Response(status_code=404)
        # The server's own limit holds only for headers that arrive in pieces.
        header_bytes = sum(len(name) + len(value) for name, value in request.headers.raw)
        if len(request.headers.raw) > MAX_HEADERS or header_bytes > MAX_HEADER_BYTES:
            return Response(status_code=431)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(request)
        except (TimeoutError, ClientDisconnect):
            return Response(status_code=408)
        if body is None:
            return Response(status_code=413)
        if path == PULL_PATH:
            return await self._patience.wait(
                lambda: self._forward(request, path, body), _has_message, request.is_disconnected
            )
        return await self._forward(request, path, body)

    async def _body(self, request: Request) -> bytes | None:
        """The body, or None when it is larger than permitted, whatever its header says."""
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._max_body_bytes:
            return None
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > self._max_body_bytes:
                return None
        return b"".join(parts)

    async def _forward(self, request: Request, path: bytes, body: bytes) -> Response:
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in HOP]
        ready = self._client.build_request(
            request.method, self._client.base_url.copy_with(raw_path=path), headers=headers, content=body
        )
        try:
            upstream = await self._client.send(ready, stream=True)
            try:
                content = b"".join([part async for part in upstream.aiter_raw()])
            finally:
                await upstream.aclose()
        except httpx.HTTPError:
            return Response(status_code=502)
        response = Response(content, upstream.status_code)
        kept = [(name.lower(), value) for name, value in upstream.headers.raw if name.lower() not in HOP]
        response.raw_headers = [*kept, (b"content-length", str(len(content)).encode())]
        return response


def _has_message(response: Response) -> bool:
    """Whether a node is to get this at once: a message, which is never empty, or a refusal."""
    return response.status_code != 200 or len(response.body) > 0


def is_open(method: str, raw_path: bytes, query: bytes) -> bool:
    """Whether nodes may ask this: a call of the node API, or the health of the service."""
    if query:
        return False
    if method == "GET":
        return raw_path == HEALTH_PATH
    return method == "POST" and FLEET_PATH.fullmatch(raw_path) is not None


def make_app(
    upstream: str,
    ca: Path | None,
    max_body_bytes: int = MAX_BODY_BYTES,
    hold_seconds: float = HOLD_SECONDS,
) -> Starlette:
    """The application; `upstream` is the SuperLink's address, `ca` what its certificate is checked against."""
    verify = ssl.create_default_context(cafile=str(ca)) if ca is not None else True
    client = httpx.AsyncClient(
        base_url=upstream, verify=verify, timeout=UPSTREAM_SECONDS, follow_redirects=False, trust_env=False
    )

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = Starlette(lifespan=closing, debug=False)
    # Mounted at the root without a route, so that Starlette neither redirects nor decodes a path first.
    app.router.default = Gateway(client, max_body_bytes, Patience(hold_seconds))
    return app


def server_config(app: Starlette, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Config:
    """How the gateway is served: TLS, bounded headers and connections, no server name, no access log."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        http="h11",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        log_level="warning",
    )


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m fedrec_server.gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--upstream", required=True, help="https://host:port of the SuperLink")
    parser.add_argument("--ca", type=Path, required=True, help="CA of the SuperLink's certificate")
    parser.add_argument(
        "--hold-seconds", type=float, default=HOLD_SECONDS, help="how long a node waits for messages"
    )
    given = parser.parse_args()
    app = make_app(given.upstream, given.ca, hold_seconds=given.hold_seconds)
    uvicorn.Server(server_config(app, given.host, given.port, given.certificate, given.key)).run()


if __name__ == "__main__":
    main()
