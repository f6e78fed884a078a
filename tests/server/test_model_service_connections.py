"""Connections to the model service, before any certificate is shown: bounded by address, ended when late."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from gateway_helpers import connect, is_open, until
from service_helpers import Place, check_in, limits, raw
from wire_helpers import POPULATION

from benchmarks.service_fuzz_calls import good_messages
from benchmarks.service_fuzz_wire import Line, good_call
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_server.network.limits import Limits
from fedrec_server.network.relay import PIECE_BYTES, both_ways, connection_limits
from fedrec_server.service.server import Service

#: No connection is late here: only the rules on numbers help.
FEW = limits(
    connections=60,
    connections_per_address=40,
    unauthenticated_per_address=12,
    handshake_seconds=600,
    max_connection_seconds=600,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"))


@pytest.fixture
def service(place: Place) -> Iterator[Service]:
    with place.start(FEW) as running:
        yield running


@pytest.fixture
def known(place: Place, service: Service) -> Iterator[GrpcTransport]:
    made = place.connect(service)
    assert made.check_in(check_in()).retry_after_seconds
    yield made
    made.close()


def new_device_works(place: Place, service: Service) -> bool:
    transport = place.connect(service)
    try:
        return transport.check_in(check_in()).retry_after_seconds > (0.0, 0.0)
    finally:
        transport.close()


def silent(place: Place, port: int, source: str) -> socket.socket:
    return connect(port, source)


def half_handshake(place: Place, port: int, source: str) -> socket.socket:
    made = connect(port, source)
    made.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    return made


def mute_after_tls(place: Place, port: int, source: str) -> socket.socket:
    return connect(port, source, place.context())


Kind = Callable[[Place, int, str], socket.socket]


@pytest.mark.parametrize("kind", [silent, half_handshake, mute_after_tls], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("addresses", [1, 20], ids=["the device's own address", "many"])
def test_connections_that_wait_keep_no_device_out(
    place: Place, service: Service, known: GrpcTransport, kind: Kind, addresses: int
) -> None:
    with ExitStack() as stack:
        held = []
        for k in range(2 * FEW.connections):
            with suppress(OSError):
                source = f"127.0.0.{1 + k % addresses}"
                held.append(stack.enter_context(kind(place, service.port, source)))
        assert known.check_in(check_in()).retry_after_seconds and new_device_works(place, service)
        most = FEW.unauthenticated_per_address if addresses == 1 else FEW.connections
        until(lambda: sum(map(is_open, held)) <= most)
        assert known.check_in(check_in()).retry_after_seconds and new_device_works(place, service)


@pytest.mark.slow
def test_540_silent_connections_change_nothing_with_the_limits_as_they_are(place: Place) -> None:
    usual = Limits()
    with place.start(limits(opened_burst=10**6)) as running, ExitStack() as stack:
        known = place.connect(running)
        assert known.check_in(check_in()).retry_after_seconds
        held = [stack.enter_context(connect(running.port)) for _ in range(540)]
        assert known.check_in(check_in()).retry_after_seconds and new_device_works(place, running)
        until(lambda: sum(map(is_open, held)) <= usual.unauthenticated_per_address)
        known.close()


def test_a_connection_has_an_end_whatever_it_does(place: Place) -> None:
    with (
        place.start(
            limits(max_connection_seconds=1.0, download_seconds=1.0, handshake_seconds=1.0)
        ) as running,
        ExitStack() as stack,
    ):
        idle = stack.enter_context(connect(running.port, trust=place.context()))
        idle.sendall(good_call("CheckIn", good_messages(POPULATION)["CheckIn"]))
        until(lambda: not is_open(idle))
        mute = stack.enter_context(connect(running.port))
        until(lambda: not is_open(mute))
        assert new_device_works(place, running)


def test_limits_on_calls_hold_for_the_callers_address_behind_the_relay(place: Place) -> None:
    with place.start(limits(calls_per_second=0.01, burst=2)) as running:
        told = []
        for source in ("127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3"):
            with ExitStack() as stack:
                opened = Line(("127.0.0.1", running.port), place.context(), source).open(stack)
                opened.sendall(good_call("CheckIn", good_messages(POPULATION)["CheckIn"]))
                opened.settimeout(10)
                answer = b""
                while b"grpc-status" not in answer:
                    answer += opened.recv(4096)
                told.append(b"too many calls" in answer)
        assert told == [False, False, True, False]


def test_the_port_behind_the_relay_answers_no_one(place: Place, service: Service) -> None:
    port = service._server._relay._inner[1]
    read = [(place.certificates / name).read_bytes() for name in ("ca.crt", "app.key", "app.pem")]
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*read)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            raw(channel, "CheckIn")(good_messages(POPULATION)["CheckIn"], timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_service_that_stops_lets_go_of_its_port_and_connections(place: Place, tmp_path: Path) -> None:
    with place.start() as running:
        port = running.port
        held = connect(port)
        known = place.connect(running)
        assert known.check_in(check_in()).retry_after_seconds
    until(lambda: not is_open(held))
    held.close()
    known.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionError:
            break
    else:
        raise AssertionError("the port is still served")


def test_passing_on_without_a_pause_leaves_the_others_their_turn() -> None:
    """A sender and a receiver that are always ready must not keep other connections from being served."""

    async def run() -> tuple[int, int]:
        source, feed = socket.socketpair()
        target, drain = socket.socketpair()
        with source, feed, target, drain:
            for each in (source, feed, target, drain):
                each.setblocking(False)
            sent = taken = turns = 0
            with suppress(BlockingIOError):
                while True:
                    sent += feed.send(bytes(4096))
            passing = asyncio.create_task(both_ways(source, target))
            while taken < sent:
                await asyncio.sleep(0)
                turns += 1
                with suppress(BlockingIOError):
                    while True:
                        taken += len(drain.recv(PIECE_BYTES))
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)
        return turns, sent // PIECE_BYTES

    turns, pieces = asyncio.run(run())
    assert turns >= pieces > 1


def test_the_usual_limits_leave_room_for_others() -> None:
    usual = connection_limits(Limits())
    assert usual.unauthenticated_per_address * 8 <= usual.per_address <= usual.connections // 8
