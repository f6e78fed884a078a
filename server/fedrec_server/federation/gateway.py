"""The only address that nodes are given: a TLS proxy that lets Flower's node API through and nothing else.

Flower serves its node API and its control API on one port, and the control API knows no authentication: a caller that
reaches it can run code on the server and on every node. The target is compared as it came over the wire, before any
decoding, against a pattern without dots, escapes or doubled slashes, so that no trick can mean another path
upstream. Node authentication itself is Flower's and passes through unchanged.

The port is open to strangers, so limits hold before any credentials are shown (`admission`, `http_connection`): for
each step of a connection a time, per address and in all a number of connections, of unfinished bytes and of calls
to SuperLink at once. What SuperLink answers to a node's call with success authenticates the connection, and frees it
of the limits on strangers; a call that SuperLink refuses ends its connection.

A node that is told that there is no message for it sleeps for three seconds, which is most of the time of a short
stage. So a node that asks for messages is answered when there is one, or after a while: the gateway asks on its
behalf, again and again (`fedrec_server.federation._patience`).

Out of scope: authenticating nodes, rate limits per node. Run as `python -m fedrec_server.federation.gateway --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from fedrec.core.errors import ServiceError
from fedrec_server.federation._patience import HOLD_SECONDS, Patience
from fedrec_server.network.admission import Admission, ConnectionLimits
from fedrec_server.network.front import Front, allow_files, listen
from fedrec_server.network.http_connection import Answer, Caller, Head, HttpServer, TimeLimits, tls

FLEET_PATH = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
HEALTH_PATH = b"/health"
PULL_PATH = b"/v1/fleet/pull-messages"
#: Open to keys that are not registered, where SuperLink allows it: success there does not authenticate.
REGISTER_PATH = b"/v1/fleet/register-node"
#: In which a node names its public key; Flower refuses a call whose signature does not fit it.
NODE_HEADER = b"flwr-public-key"
#: Flower cuts arrays into pieces of 5 MiB.
MAX_BODY_BYTES = 16 << 20
UPSTREAM_SECONDS = 60.0
RENEWAL_LOOK_SECONDS = 1.0
UPSTREAM_CONNECTIONS = 128
#: Limits on connections that are options.
LIMIT_OPTIONS = ("connections", "per_address", "unauthenticated_per_address", "per_node")
#: Headers that speak about one connection (RFC 9110, section 7.6.1), or that the next hop sets itself.
HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade expect host content-length".split()
)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GatewayLimits:
    """Of a gateway.

    Attributes:
        connections, times: of connections.
        calls_per_address, calls: passed on at once for connections that are not authenticated.
        turn_seconds: for which such a call waits until it is passed on.
        max_body_bytes: of a request.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    times: TimeLimits = field(default_factory=TimeLimits)
    calls_per_address: int = 8
    calls: int = 32
    turn_seconds: float = 20.0
    max_body_bytes: int = MAX_BODY_BYTES


class Turns:
    """So many calls at once, of one address and of all; the others wait in order.

    Args:
        per_address, total: at once.
        seconds: a call waits for so long.
    """

    def __init__(self, per_address: int, total: int, seconds: float) -> None:
        self._per_address, self._seconds = per_address, seconds
        self._all = asyncio.Semaphore(total)
        self._one: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it.

        Raises:
            TimeoutError: it did not come in time.
        """
        semaphore, users = self._one.get(address, (asyncio.Semaphore(self._per_address), 0))
        self._one[address] = (semaphore, users + 1)
        try:
            async with asyncio.timeout(self._seconds):
                await semaphore.acquire()
            try:
                async with asyncio.timeout(self._seconds):
                    await self._all.acquire()
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                semaphore.release()
        finally:
            semaphore, users = self._one[address]
            self._one[address] = (semaphore, users - 1)
            if users == 1:
                del self._one[address]


class Gateway:
    """Forwards permitted requests to `client`'s base address; a `Handler`.

    Args:
        client: whose base address is the SuperLink's.
        limits: on strangers.
        patience: with which it waits for messages of a node.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        limits: GatewayLimits | None = None,
        patience: Patience | None = None,
    ) -> None:
        limits = limits or GatewayLimits()
        self.max_body_bytes = limits.max_body_bytes
        self._client = client
        self._turns = Turns(limits.calls_per_address, limits.calls, limits.turn_seconds)
        self._patience = patience or Patience()

    def refusal(self, head: Head) -> Answer | None:
        """See `Handler`: whatever is not open."""
        return None if is_open(head.method, head.target) else Answer(404)

    async def answer(self, head: Head, body: bytes, caller: Caller) -> Answer:
        """See `Handler`."""
        try:
            if head.target != PULL_PATH:
                return await self._call(head, body, caller)
            return await self._patience.wait(
                lambda: self._call(head, body, caller), _has_message, caller.is_gone
            )
        except TimeoutError:
            return Answer(503, close=True)

    async def _call(self, head: Head, body: bytes, caller: Caller) -> Answer:
        known = caller.authenticated
        async with nullcontext() if known else self._turns.turn(caller.address):
            with caller.forwarding():
                answer = await self._forward(head, body)
        if answer.status // 100 == 2 and head.target not in (HEALTH_PATH, REGISTER_PATH):
            caller.accept(_node_of(head))
        elif answer.status >= 400 and not known:
            return Answer(answer.status, answer.headers, answer.body, close=True)
        return answer

    async def _forward(self, head: Head, body: bytes) -> Answer:
        headers = [(name, value) for name, value in head.headers if name.lower() not in HOP]
        ready = self._client.build_request(
            head.method, self._client.base_url.copy_with(raw_path=head.target), headers=headers, content=body
        )
        try:
            upstream = await self._client.send(ready, stream=True)
            try:
                content = b"".join([part async for part in upstream.aiter_raw()])
            finally:
                await upstream.aclose()
        except httpx.HTTPError:
            return Answer(502)
        kept = [(name.lower(), value) for name, value in upstream.headers.raw if name.lower() not in HOP]
        return Answer(upstream.status_code, kept, content)


def _node_of(head: Head) -> bytes:
    """The public key that signed a call; SuperLink has verified it when the call was accepted."""
    return next((value for name, value in head.headers if name.lower() == NODE_HEADER), b"")


def _has_message(answer: Answer) -> bool:
    """Whether a node is to get this at once: a message, which is never empty, or a refusal."""
    return answer.status != 200 or len(answer.body) > 0


def is_open(method: str, target: bytes) -> bool:
    """Whether nodes may ask this: a call of the node API, or the health of the service; never with a query."""
    if method == "GET":
        return target == HEALTH_PATH
    return method == "POST" and FLEET_PATH.fullmatch(target) is not None


@dataclass(frozen=True)
class Served:
    """What a gateway serves, and how.

    Attributes:
        upstream: "https://host:port" of the SuperLink.
        ca: certificate authority of the SuperLink's certificate.
        certificate, key: of the gateway.
        hold_seconds: how long a node waits for messages.
        limits: on callers.
    """

    upstream: str
    ca: Path
    certificate: Path
    key: Path
    hold_seconds: float = HOLD_SECONDS
    limits: GatewayLimits = field(default_factory=GatewayLimits)


async def serve(served: Served, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve on a listening socket until stopped.

    Raises:
        ServiceError: a certificate cannot be used.
    """
    limits = served.limits
    context = tls(served.certificate, served.key)
    allow_files(limits.connections.connections)
    pool = httpx.Limits(
        max_connections=UPSTREAM_CONNECTIONS, max_keepalive_connections=UPSTREAM_CONNECTIONS // 2
    )
    async with httpx.AsyncClient(
        base_url=served.upstream,
        verify=ssl.create_default_context(cafile=str(served.ca)),
        timeout=UPSTREAM_SECONDS,
        limits=pool,
        follow_redirects=False,
        trust_env=False,
    ) as client:
        gateway = Gateway(client, limits, Patience(served.hold_seconds))
        admission = Admission(limits.connections)
        server = HttpServer(gateway, context, admission, limits.times)
        renewing = asyncio.create_task(_take_renewed(context, served.certificate, served.key))
        try:
            await Front(listener, admission, server.serve).run(stop)
        finally:
            renewing.cancel()


async def _take_renewed(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Show a certificate that was renewed on the disk to new connections; those that are open stay."""
    seen = _changed(certificate), _changed(key)
    while True:
        await asyncio.sleep(RENEWAL_LOOK_SECONDS)
        now = _changed(certificate), _changed(key)
        if now == seen or None in now:
            continue
        try:
            tls(certificate, key)  # a pair of which only one half is written is not taken over
            context.load_cert_chain(certificate, key)
            seen = now
        except (ServiceError, OSError, ssl.SSLError) as error:
            log.warning("the renewed certificate is not in use yet: %s", error)


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


async def _until_signal(served: Served, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(served, listener, stop)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m fedrec_server.federation.gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--upstream", required=True, help="https://host:port of the SuperLink")
    parser.add_argument("--ca", type=Path, required=True, help="CA of the SuperLink's certificate")
    parser.add_argument(
        "--hold-seconds", type=float, default=HOLD_SECONDS, help="how long a node waits for messages"
    )
    usual = ConnectionLimits()
    for name in LIMIT_OPTIONS:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=int, default=getattr(usual, name), help=f"usually {getattr(usual, name)}"
        )
    given = parser.parse_args()
    connections = replace(usual, **{name: getattr(given, name) for name in LIMIT_OPTIONS})
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    served = Served(
        given.upstream, given.ca, given.certificate, given.key, given.hold_seconds, GatewayLimits(connections)
    )
    try:
        asyncio.run(_until_signal(served, listen(given.host, given.port)))
    except ServiceError as error:
        sys.exit(f"gateway: {error}")


if __name__ == "__main__":
    main()
