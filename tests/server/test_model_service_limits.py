"""Limits of the model service: whoever asks too much, too long or nothing at all gets in no one else's way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from gateway_helpers import until
from hypothesis import given
from hypothesis import strategies as st
from service_helpers import Place, check_in, limits, raw
from wire_helpers import POPULATION, factors, items

from benchmarks.service_fuzz_calls import good_messages
from benchmarks.service_fuzz_wire import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    SETTINGS,
    Line,
    call_headers,
    frame,
    good_call,
    literal,
)
from fedrec.core.errors import ServerBusy
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_server.network._addresses import network
from fedrec_server.network.limits import Buckets, Limits, Places
from fedrec_server.network.watchdog import Watchdog
from fedrec_server.service.server import Service

#: Short, so that tests need not wait; every other limit is the usual one.
SHORT = limits(
    threads=12,
    calls_per_address=8,
    message_seconds=0.5,
    piece_seconds=0.5,
    handshake_seconds=1.0,
    connections=20,
    connections_per_address=16,
    unauthenticated_per_address=8,
)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("service"), versions=0)
    made.publish(factors(200_000, 16), items(200_000))
    return made


@pytest.fixture
def service(place: Place) -> Iterator[Service]:
    with place.start(SHORT) as running:
        yield running


@pytest.fixture
def good(place: Place, service: Service) -> Iterator[GrpcTransport]:
    made = place.connect(service)
    yield made
    made.close()


def line(place: Place, service: Service, source: str, tls: bool = True) -> Line:
    return Line(("127.0.0.1", service.port), place.context() if tls else None, source)


def half_calls(count: int) -> bytes:
    """Calls that begin, and send no message."""
    headers = b"".join(literal(*each) for each in call_headers("/fedrec.v1.ModelService/CheckIn"))
    calls = b"".join(frame(HEADERS, END_HEADERS, 2 * k + 1, headers) for k in range(count))
    return PREFACE + frame(SETTINGS, 0, 0, b"") + calls


# The parts.


def test_buckets_refill_and_stay_small() -> None:
    now = [0.0]
    buckets = Buckets(2, 3, 2, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    for name in "bcd":
        assert buckets.take(name)
    assert len(buckets._left) == 2


@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from("ab")), max_size=60),
    st.floats(0.1, 10),
    st.integers(1, 10),
)
def test_no_key_ever_gets_more_than_burst_and_rate(
    asked: list[tuple[float, str]], rate: float, burst: int
) -> None:
    now = [0.0]
    buckets = Buckets(rate, burst, 10, lambda: now[0])
    taken = {"a": 0, "b": 0}
    for wait, key in asked:
        now[0] += wait
        taken[key] += buckets.take(key)
        assert taken[key] <= burst + rate * now[0] + 1e-6


def test_places_are_limited_for_one_and_for_all_and_given_back() -> None:
    places = Places(2, 3)
    with places.one("a") as first, places.one("a") as second, places.one("a") as third:
        assert (first, second, third) == (True, True, False)
        with places.one("b") as fourth, places.one("c") as fifth:
            assert (fourth, fifth) == (True, False)
    with pytest.raises(ZeroDivisionError), places.one("a"):
        raise ZeroDivisionError
    assert not places.taken


@pytest.mark.parametrize(
    ("host", "known_as"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff::1]", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_limit_holds_for_an_address_or_a_network_of_ipv6(host: str, known_as: str) -> None:
    assert network(host) == known_as


def test_the_watchdog_ends_what_is_late_once_and_nothing_else() -> None:
    watchdog, ended = Watchdog(), list[str]()
    with (
        watchdog.within(0.05, lambda: 1 / 0),  # a call that cannot be ended does not end the watchdog
        watchdog.within(0.05, lambda: ended.append("late")),
        watchdog.within(30, lambda: ended.append("in time")),
    ):
        time.sleep(0.8)
    assert ended == ["late"] and not watchdog._watched
    watchdog.close()


def test_every_limit_is_told_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/model-service.md").read_text()
    for field in fields(Limits):
        assert f"`{field.name}`" in page, field.name
        told = next(row for row in page.splitlines() if row.startswith(f"| `{field.name}`"))
        assert f" {field.default:,g} " in told.replace("|", " "), (field.name, field.default, told)


# The whole, over real sockets. Whoever is up to no good comes from 127.0.0.2 and on.


def test_calls_without_a_message_stop_no_one_and_are_ended(
    place: Place, service: Service, good: GrpcTransport
) -> None:
    with ExitStack() as stack:
        opened = [line(place, service, "127.0.0.2").open(stack) for _ in range(3)]
        for connection in opened:
            connection.sendall(half_calls(30))
        for _ in range(20):
            assert good.check_in(check_in()).retry_after_seconds
        opened[0].settimeout(60)
        answer = b""
        while answer.count(b"grpc-message") < 2:
            answer += opened[0].recv(4096)
        until(lambda: not service.calls.under_way.taken)
    with ExitStack() as stack:
        again = line(place, service, "127.0.0.2").open(stack)
        again.sendall(good_call("CheckIn", good_messages(POPULATION)["CheckIn"]))
        again.settimeout(60)
        answer = b""
        while b"grpc-status\x010" not in answer:
            answer += again.recv(4096)


def test_downloads_that_are_not_read_are_ended_and_stop_no_one(
    place: Place, service: Service, good: GrpcTransport
) -> None:
    content = messages.FetchRequest(
        population=POPULATION, path=place.fetched_as(1, MODEL_FILE)
    ).SerializeToString()
    with ExitStack() as stack:
        opened = [line(place, service, "127.0.0.2").open(stack) for _ in range(6)]
        for connection in opened:
            connection.sendall(good_call("Fetch", content))  # never reads
        until(lambda: service.calls.downloads.taken > 0)
        whole = b"".join(good.fetch(POPULATION, place.fetched_as(1, MODEL_FILE)))
        assert whole == (place.registry.path(1) / MODEL_FILE).read_bytes()
        assert service.calls.downloads.taken <= SHORT.downloads_per_address
        until(lambda: not service.calls.downloads.taken)


def test_a_slow_reader_gets_everything(place: Place) -> None:
    """Slow, but never silent for longer than a piece may take."""
    whole = (place.registry.path(1) / MODEL_FILE).read_bytes()
    with place.start(limits(piece_seconds=2.0)) as running:
        transport = place.connect(running)
        got = b""
        for piece in transport.fetch(POPULATION, place.fetched_as(1, MODEL_FILE)):
            got += piece
            time.sleep(0.03)
        assert got == whole
        transport.close()


def test_a_download_has_an_end(place: Place) -> None:
    # A window that does not grow: what is not read yet waits on the server's side.
    narrow = ("grpc.http2.bdp_probe", 0)
    with place.start(limits(download_seconds=0.4)) as running, place.channel(running, narrow) as channel:
        request = messages.FetchRequest(population=POPULATION, path=place.fetched_as(1, MODEL_FILE))
        stream = raw(channel, "Fetch", "unary_stream")(request.SerializeToString())
        next(stream)
        time.sleep(1.5)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_mute_connections_are_closed_and_do_not_fill_the_house(
    place: Place, service: Service, good: GrpcTransport
) -> None:
    assert good.check_in(check_in()).retry_after_seconds
    with ExitStack() as stack:
        mute = [line(place, service, "127.0.0.2", tls=False).open(stack) for _ in range(40)]
        assert good.check_in(check_in()).retry_after_seconds
        start, closed = time.monotonic(), 0
        for connection in mute:
            connection.settimeout(60)
            try:
                while connection.recv(100):
                    pass
            except ConnectionError:
                pass
            closed += 1
        assert closed == 40 and time.monotonic() - start < 12  # one after another would take 16 s
    fresh = place.connect(service)
    assert fresh.check_in(check_in()).retry_after_seconds
    fresh.close()


def test_one_address_cannot_use_up_what_others_may_ask(place: Place) -> None:
    message = good_messages(POPULATION)["CheckIn"]
    with place.start(limits(calls_per_second=1.0, burst=5)) as running:
        with ExitStack() as stack:
            told = b""
            for _ in range(12):
                connection = line(place, running, "127.0.0.2").open(stack)
                connection.sendall(good_call("CheckIn", message))
                connection.settimeout(60)
                answer = b""
                while b"grpc-status" not in answer:
                    answer += connection.recv(4096)
                told += answer
        assert 5 <= told.count(b"grpc-status\x010") <= 7 and told.count(b"too many calls") >= 5
        transport = place.connect(running)
        assert transport.check_in(check_in()).retry_after_seconds
        transport.close()


def test_all_devices_of_an_app_together_have_a_limit(place: Place) -> None:
    with place.start(limits(app_calls_per_second=0.01, app_burst=3)) as running:
        transport = place.connect(running)
        for _ in range(3):
            transport.check_in(check_in())
        with pytest.raises(ServerBusy):
            transport.check_in(check_in())
        transport.close()


def test_more_downloads_than_an_address_may_have_are_told_to_come_back(place: Place) -> None:
    request = messages.FetchRequest(
        population=POPULATION, path=place.fetched_as(1, MODEL_FILE)
    ).SerializeToString()
    with place.start(limits(downloads_per_address=2)) as running, place.channel(running) as channel:
        call = raw(channel, "Fetch", "unary_stream")
        held = [call(request) for _ in range(2)]
        for each in held:
            next(each)
        with pytest.raises(grpc.RpcError) as caught:
            next(call(request))
        assert caught.value.code() is EXHAUSTED
        assert dict(caught.value.trailing_metadata())["retry-max-seconds"] == "200"
        for each in held:
            each.cancel()


@pytest.mark.parametrize("size", [65_000, 66_000, 8 << 20])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_no_message_is_larger_than_the_limit_packed_or_not(
    place: Place, size: int, compression: grpc.Compression
) -> None:
    with place.start() as running, place.channel(running, compression=compression) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            raw(channel, "CheckIn")(bytes(size), timeout=10)
        assert caught.value.code() is (EXHAUSTED if size > 65_536 else grpc.StatusCode.INVALID_ARGUMENT)


def test_threads_and_connections_are_bounded_under_a_crowd(place: Place, service: Service) -> None:
    """Many at once: everyone gets an answer or the time to come back, with no more threads than allowed."""
    outcomes: list[str] = []

    def many(transport: GrpcTransport) -> None:
        for _ in range(30):
            try:
                transport.check_in(check_in())
                outcomes.append("ok")
            except ServerBusy:
                outcomes.append("busy")

    transports = [place.connect(service) for _ in range(10)]
    before = threading.active_count()
    crowd = [threading.Thread(target=many, args=(each,)) for each in transports for _ in range(3)]
    for each in crowd:
        each.start()
    most = 0
    while any(each.is_alive() for each in crowd):
        most = max(most, threading.active_count())
        time.sleep(0.01)
    for each in transports:
        each.close()
    assert len(outcomes) == 900 and outcomes.count("ok") > 100
    assert most - before <= 30 + SHORT.threads + len(transports) + 4
    with socket.create_connection(("127.0.0.1", service.port), timeout=2):
        pass
