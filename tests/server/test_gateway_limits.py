"""Strangers at the gateway, over real sockets: whatever they hold open or send slowly, nodes are served as before.

Nodes are at 127.0.0.1. The limits are short here, so that connections that are late end while a test waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from gateway_helpers import Upstream, connect, is_open, running, until, upstream_config, uvicorn_running
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import ServiceError
from fedrec.core.processes import free_ports
from fedrec_server.federation.gateway import GatewayLimits, Served
from fedrec_server.network._addresses import network
from fedrec_server.network.admission import Admission, ConnectionLimits, Entry
from fedrec_server.network.certificates import make_certificates
from fedrec_server.network.front import Front, listen
from fedrec_server.network.http_connection import TimeLimits

#: Long enough that a test sees the connections held, short enough to see them end.
SHORT = TimeLimits(
    handshake_seconds=2.0,
    first_byte_seconds=2.0,
    header_seconds=2.0,
    body_seconds=2.0,
    least_bytes_per_second=1 << 20,
    request_seconds=4.0,
    idle_seconds=2.0,
)
#: Nothing is late: only the rules on numbers help.
LONG = TimeLimits(600, 600, 600, 600, 1.0, 600, 600)
FEW = ConnectionLimits(
    connections=60,
    per_address=50,
    unauthenticated_per_address=12,
    opened_per_second=1e6,
    burst=10**6,
    held_bytes_per_address=4 << 20,
    held_bytes=8 << 20,
)
PULL = "/v1/fleet/pull-messages"


@dataclass(frozen=True)
class Place:
    """A SuperLink's stand-in, and certificates."""

    upstream: Upstream
    folder: Path
    up_port: int
    trust: ssl.SSLContext

    def served(self, limits: GatewayLimits) -> Served:
        files = (self.folder / "ca.crt", self.folder / "gateway.pem", self.folder / "gateway.key")
        return Served(f"https://127.0.0.1:{self.up_port}", *files, limits=limits)

    def node(self, port: int) -> httpx.Client:
        return httpx.Client(base_url=f"https://localhost:{port}", verify=self.trust, trust_env=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tls")
    ca = make_certificates(folder, ("superlink", "gateway"))
    (port,) = free_ports(1)
    upstream = Upstream()
    with uvicorn_running(upstream_config(upstream, port, folder)):
        yield Place(upstream, folder, port, ssl.create_default_context(cafile=str(ca)))


def works(client: httpx.Client) -> bool:
    """A call of the node API, and health."""
    passed = client.post(PULL, content=b"abc", headers={"x-signature": "mine"})
    return passed.content == b"cba" and client.get("/health").status_code == 201


def work_of_a_new_node(place: Place, port: int) -> bool:
    with place.node(port) as fresh:
        return works(fresh)


def silent(place: Place, port: int, source: str) -> socket.socket:
    return connect(port, source, place.trust)


def half_handshake(place: Place, port: int, source: str) -> socket.socket:
    made = connect(port, source)
    made.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the beginning of a ClientHello
    return made


def half_header(place: Place, port: int, source: str) -> socket.socket:
    made = connect(port, source, place.trust)
    made.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
    return made


def half_body(place: Place, port: int, source: str) -> socket.socket:
    made = connect(port, source, place.trust)
    head = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    made.sendall(head + bytes(1000))
    return made


def idle(place: Place, port: int, source: str) -> socket.socket:
    made = connect(port, source, place.trust)
    made.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert made.recv(1 << 16)
    return made


KINDS = [silent, half_handshake, half_header, half_body, idle]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"], ids=["same address", "another"])
def test_connections_that_wait_keep_no_node_out_and_end(place: Place, kind, source: str) -> None:  # type: ignore[no-untyped-def]
    limits = GatewayLimits(connections=FEW, times=SHORT)
    with running(place.served(limits)) as port, contextlib.ExitStack() as stack, place.node(port) as known:
        assert works(known)
        held = [stack.enter_context(kind(place, port, source)) for _ in range(3 * FEW.connections)]
        assert works(known) and work_of_a_new_node(place, port)
        until(lambda: not any(map(is_open, held)))
        assert works(known) and work_of_a_new_node(place, port)


@pytest.mark.parametrize("kind", [silent, half_handshake], ids=lambda kind: kind.__name__)
def test_nor_do_those_of_many_addresses_that_are_never_late(place: Place, kind) -> None:  # type: ignore[no-untyped-def]
    limits = GatewayLimits(connections=FEW, times=LONG)
    with running(place.served(limits)) as port, contextlib.ExitStack() as stack, place.node(port) as known:
        assert works(known)
        held = [
            stack.enter_context(kind(place, port, f"127.0.0.{2 + k % 20}"))
            for k in range(2 * FEW.connections)
        ]
        assert works(known) and work_of_a_new_node(place, port)
        until(lambda: sum(map(is_open, held)) <= FEW.connections)
        assert sum(map(is_open, held)) > FEW.connections - 10  # the others may stay: they are in no one's way


@pytest.mark.slow
@pytest.mark.parametrize("headers", [False, True], ids=["silent", "one byte at a time"])
def test_600_connections_from_the_nodes_own_address_change_nothing(place: Place, headers: bool) -> None:
    """With the limits as they are shipped."""
    with running(place.served(GatewayLimits())) as port, contextlib.ExitStack() as stack:
        known = stack.enter_context(place.node(port))
        assert works(known)
        held = [stack.enter_context(connect(port, trust=place.trust)) for _ in range(600)]
        for byte in b"POST" if headers else b"":
            for each in held[-60:]:
                each.sendall(bytes([byte]))
            assert works(known) and work_of_a_new_node(place, port)
        assert works(known) and work_of_a_new_node(place, port)
        assert sum(map(is_open, held)) <= GatewayLimits().connections.unauthenticated_per_address


def test_connections_of_one_node_are_bounded_and_those_of_others_stay(place: Place) -> None:
    connections = replace(FEW, per_node=3, unauthenticated_per_address=40)
    with (
        running(place.served(GatewayLimits(times=LONG, connections=connections))) as port,
        contextlib.ExitStack() as stack,
    ):

        def call(node: str) -> socket.socket:
            made = stack.enter_context(connect(port, trust=place.trust))
            head = f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nflwr-public-key: {node}\r\n\r\n"
            made.sendall(head.encode())
            assert made.recv(1 << 16).startswith(b"HTTP/1.1 201")
            return made

        other, own = call("other"), [call("greedy") for _ in range(10)]
        until(lambda: sum(map(is_open, own)) == 3)
        assert is_open(other) and [is_open(each) for each in own] == [False] * 7 + [True] * 3


def test_a_renewed_certificate_is_shown_without_a_restart(place: Place, tmp_path: Path) -> None:
    for name in ("gateway.pem", "gateway.key"):
        (tmp_path / name).write_bytes((place.folder / name).read_bytes())
    files = {"certificate": tmp_path / "gateway.pem", "key": tmp_path / "gateway.key"}
    with running(replace(place.served(GatewayLimits()), **files)) as port, place.node(port) as known:
        assert works(known)
        new = make_certificates(tmp_path / "new", ("gateway",))
        for name in ("gateway.pem", "gateway.key"):
            (tmp_path / "new" / name).replace(tmp_path / name)
        trust = ssl.create_default_context(cafile=str(new))

        def is_shown() -> bool:
            try:
                connect(port, trust=trust).close()
            except ssl.SSLError:
                return False
            return True

        until(is_shown)
        assert works(known)


@pytest.mark.parametrize(
    ("begin", "byte"),
    [
        (b"", b"a"),
        (b"POST /v1/fleet/pull-messages HTTP/1.1\r\nx: ", b"y"),
        (b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", b"z"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"\n"),
    ],
    ids=["request line", "header", "body", "between requests"],
)
def test_a_byte_now_and_then_earns_no_more_time(place: Place, begin: bytes, byte: bytes) -> None:
    with running(place.served(GatewayLimits(times=SHORT))) as port, connect(port, trust=place.trust) as slow:
        slow.sendall(begin)
        slow.settimeout(0.2)
        deadline, ended = time.monotonic() + 30, False
        while not ended and time.monotonic() < deadline:
            try:
                slow.sendall(byte)
                ended = slow.recv(1 << 16) == b""
            except TimeoutError:
                pass
            except OSError:
                ended = True
        assert ended


@pytest.mark.slow
def test_who_does_not_take_its_answer_is_cut_off(place: Place) -> None:
    limits = GatewayLimits(times=SHORT, connections=FEW)
    body = 12 << 20
    head = f"POST /v1/fleet/pull-object HTTP/1.1\r\nhost: x\r\ncontent-length: {body}\r\n\r\n".encode()
    with running(place.served(limits)) as port, connect(port, trust=place.trust) as deaf:
        deaf.sendall(head + bytes(body))
        until(lambda: place.upstream.asked[-1].endswith("pull-object"))
        assert work_of_a_new_node(place, port)
        time.sleep(6)
        deaf.settimeout(30)
        taken = 0
        with contextlib.suppress(OSError):
            while part := deaf.recv(1 << 20):
                taken += len(part)
        assert taken < body


def test_what_strangers_have_sent_of_their_requests_is_bounded(place: Place) -> None:
    limits = GatewayLimits(times=LONG, connections=FEW)
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n"
    with running(place.served(limits)) as port, contextlib.ExitStack() as stack:
        held = []
        for k in range(12):
            made = stack.enter_context(connect(port, f"127.0.0.{2 + k % 2}", place.trust))
            with contextlib.suppress(OSError):
                made.sendall(head + bytes(1 << 20))
            held.append(made)
        until(lambda: sum(map(is_open, held)) <= 8)
        assert work_of_a_new_node(place, port)


def test_a_node_that_waits_for_messages_is_not_cut(place: Place) -> None:
    """Its poll is held by the gateway while strangers come and go, also from its own address."""
    limits = GatewayLimits(times=LONG, connections=replace(FEW, connections=13))
    answers: list[int] = []

    def poll(client: httpx.Client) -> None:
        answers.append(client.post(PULL, content=b"", timeout=20).status_code)

    with (
        running(replace(place.served(limits), hold_seconds=3.0)) as port,
        contextlib.ExitStack() as stack,
        place.node(port) as node,
    ):
        waiting = threading.Thread(target=poll, args=(node,))
        waiting.start()
        for k in range(60):
            stack.enter_context(connect(port, f"127.0.0.{1 + k % 3}", place.trust))
        waiting.join(30)
        assert answers == [201]


def test_a_call_that_superlink_refuses_ends_its_connection_unless_it_was_known(place: Place) -> None:
    with running(place.served(GatewayLimits(times=LONG))) as port:
        with place.node(port) as stranger:
            refused = stranger.post(PULL, headers={"x-signature": "bad"})
            assert refused.status_code == 401 and refused.headers["connection"] == "close"
        with place.node(port) as node:
            assert works(node)
            refused = node.post(PULL, headers={"x-signature": "bad"})
            assert refused.status_code == 401 and "connection" not in refused.headers


def test_neither_health_nor_registering_authenticates(place: Place) -> None:
    limits = GatewayLimits(times=LONG, connections=FEW)
    with running(place.served(limits)) as port, contextlib.ExitStack() as stack:
        held = []
        for path in (b"GET /health", b"POST /v1/fleet/register-node", b"POST /v1/fleet/activate-node"):
            made = stack.enter_context(connect(port, trust=place.trust))
            made.sendall(path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            assert made.recv(1 << 16).startswith(b"HTTP/1.1 201")
            held.append(made)
        for _ in range(FEW.unauthenticated_per_address):
            stack.enter_context(connect(port, trust=place.trust))
        assert [is_open(each) for each in held] == [False, False, True]


def test_tls_is_new_enough_and_nothing_else_is_spoken(place: Place) -> None:
    with running(place.served(GatewayLimits())) as port:
        old = ssl.create_default_context(cafile=str(place.folder / "ca.crt"))
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connect(port, trust=old)
        with connect(port) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert not plain.recv(100).startswith(b"HTTP")
        assert work_of_a_new_node(place, port)


def test_a_gateway_that_cannot_serve_says_why_in_one_line(place: Place) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ServiceError, match="use a free port"):
            listen("127.0.0.1", int(port))
        for certificate in (place.folder / "gateway.pem", place.folder / "none.pem"):
            command = [sys.executable, "-m", "fedrec_server.federation.gateway", "--port", port]
            command += ["--certificate", str(certificate), "--key", str(place.folder / "gateway.key")]
            command += ["--upstream", "https://127.0.0.1:1", "--ca", str(place.folder / "ca.crt")]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
            assert ended.stderr.startswith("gateway: ")


# Who is kept, whatever comes.


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "come", "accept", "busy", "leave"]), st.integers(0, 30)),
    max_size=80,
)


@given(STEPS)
def test_no_step_exceeds_a_limit_or_cuts_who_is_answered(steps: list[tuple[str, int]]) -> None:
    limits = ConnectionLimits(8, 5, 3, 1e6, 10**6)
    admission, here = Admission(limits), list[Entry]()

    def come(address: str) -> None:
        box: list[Entry] = []
        entry = admission.admit(address, lambda: here.remove(box[0]))
        if entry is not None:
            box.append(entry)
            here.append(entry)

    for step, number in steps:
        chosen = here[number % len(here)] if here else None
        before = list(here)
        if step == "come":
            address = "abcd"[number % 4]
            come(address)
            ended = [each for each in before if each not in here]
            assert len(ended) <= 1 and not any(each.busy for each in ended)
            own = [each for each in before if each.address == address]
            if len(own) < 3 and len(before) < 8:
                assert not ended and len(here) == len(before) + 1
            if not own and not all(each.busy for each in before):
                assert len(here) > len(before) - len(ended)  # a new user is let in
            if any(each.authenticated for each in ended) and len(own) < 5:
                assert all(each.busy or each.authenticated for each in before)
        elif chosen is not None and step == "accept":
            admission.accept(chosen)
        elif chosen is not None and step == "busy":
            chosen.forwarded = not chosen.forwarded
        elif chosen is not None:
            admission.leave(chosen)
            here.remove(chosen)
        assert len(admission) == len(here) <= 8
        for address in "abcd":
            own = [each for each in here if each.address == address]
            assert len(own) <= 5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50)), max_size=60))
def test_unfinished_bytes_of_strangers_stay_within_their_bounds(parts: list[tuple[int, int]]) -> None:
    limits = ConnectionLimits(20, 20, 20, 1e6, 10**6, held_bytes_per_address=100, held_bytes=150)
    admission, here = Admission(limits), dict[int, Entry]()
    for k in range(6):
        entry = admission.admit("abc"[k % 3], lambda k=k: here.pop(k))  # type: ignore[misc]
        assert entry is not None
        here[k] = entry
    for k, size in parts:
        if k in here:
            entry = here[k]
            admission.hold(entry, min(entry.held + size, 60))
            assert k in here
            sums = {a: sum(e.held for e in here.values() if e.address == a) for a in "abc"}
            assert max(sums.values()) <= 100 and sum(sums.values()) <= 150


def test_one_address_opens_no_more_than_its_rate() -> None:
    admission = Admission(ConnectionLimits(opened_per_second=1e-6, burst=3))
    assert [admission.admit("a", lambda: None) is not None for _ in range(5)] == [True] * 3 + [False] * 2
    assert admission.admit("b", lambda: None) is not None


@pytest.mark.parametrize("burst", [10**6, 1], ids=["admitted", "closed"])
def test_accepting_many_at_once_leaves_the_others_their_turn(burst: int) -> None:
    """What waits is accepted without a pause of its own: a flood must not keep the rest from running."""
    waiting = 200

    async def run() -> int:
        listener = listen("127.0.0.1", 0)
        admission = Admission(ConnectionLimits(opened_per_second=1e-6, burst=burst))

        async def serve(connection: socket.socket, entry: Entry) -> None:
            await asyncio.sleep(600)

        with contextlib.ExitStack() as stack:
            for _ in range(waiting):
                stack.enter_context(connect(int(listener.getsockname()[1])))
            stop, turns = asyncio.Event(), 0
            accepting = asyncio.create_task(Front(listener, admission, serve).run(stop, 0.0))
            while select.select([listener], [], [], 0)[0]:
                await asyncio.sleep(0)
                turns += 1
            stop.set()
            await accepting
        return turns

    assert asyncio.run(run()) >= waiting // 2


@given(st.text(max_size=40))
def test_any_text_is_an_address(host: str) -> None:
    network(host)


@given(st.integers(0, 1 << 30))
def test_a_body_earns_time_with_what_came_and_not_for_ever(size: int) -> None:
    times = TimeLimits()
    assert times.body_seconds <= times.allowed(size) <= times.request_seconds
    assert times.allowed(size) <= times.allowed(size + 1)
