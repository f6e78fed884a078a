"""A few thousand of the inputs of `python -m benchmarks.service_fuzz`, which sends more than 100,000.

The fuzzer itself is held against services that it must find wanting.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from service_helpers import Place, check_in, limits
from wire_helpers import POPULATION

from benchmarks import service_fuzz_calls as service_fuzz
from benchmarks.service_fuzz_calls import METHODS, fuzz_calls, good_messages
from benchmarks.service_fuzz_wire import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    SETTINGS,
    Line,
    call_headers,
    frame,
    fuzz_frames,
    fuzz_sockets,
    fuzz_streams,
    good_call,
    literal,
    talk,
)
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_server.service.server import Service

Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Service]:
    with place.start(limits(message_seconds=1.0)) as running:
        yield running


@pytest.fixture
def good(place: Place, service: Service) -> Iterator[GrpcTransport]:
    made = place.connect(service)
    yield made
    assert made.check_in(check_in()).retry_after_seconds
    made.close()


def line(place: Place, service: Service, source: str, tls: bool = True) -> Line:
    return Line(("127.0.0.1", service.port), place.context() if tls else None, source)


def all_good(outcomes: Counter[str]) -> bool:
    return not any(outcome.startswith("BAD") for outcome in outcomes)


@pytest.mark.usefixtures("good")
def test_garbage_as_messages(place: Place, service: Service) -> None:
    with place.channel(service) as channel:
        outcomes = fuzz_calls(channel, 2000, random.Random(1), POPULATION)
    assert outcomes.total() == 2000 and all_good(outcomes), outcomes
    assert {"invalid_argument", "not_found", "unimplemented", "resource_exhausted", "answered"} <= set(
        outcomes
    )


def test_good_http_and_broken_grpc(place: Place, service: Service, good: GrpcTransport) -> None:
    outcomes = fuzz_streams(line(place, service, "127.0.0.3"), 1000, random.Random(2), POPULATION)
    assert outcomes.total() == 1000 and all_good(outcomes), outcomes
    assert outcomes["streams: told a status"] > 300  # they do get as far as gRPC
    assert good.check_in(check_in()).retry_after_seconds


def test_broken_http(place: Place, service: Service, good: GrpcTransport) -> None:
    outcomes = fuzz_frames(line(place, service, "127.0.0.4"), 600, random.Random(3))
    assert outcomes.total() == 600 and all_good(outcomes), outcomes
    assert good.check_in(check_in()).retry_after_seconds


def test_what_is_no_tls(place: Place, service: Service, good: GrpcTransport) -> None:
    outcomes = fuzz_sockets(line(place, service, "127.0.0.5", tls=False), 200, random.Random(4))
    assert outcomes.total() == 200 and all_good(outcomes), outcomes
    assert good.check_in(check_in()).retry_after_seconds


def test_a_path_that_is_no_text_ends_one_call_and_not_the_service(
    place: Place, service: Service, good: GrpcTransport
) -> None:
    """gRPC's asyncio server dies of it."""
    headers = [(name, b"/\xff\xfe" if name == b":path" else value) for name, value in call_headers("")]
    call = frame(HEADERS, END_HEADERS, 1, b"".join(literal(*each) for each in headers))
    answer, _ = talk(line(place, service, "127.0.0.6"), PREFACE + frame(SETTINGS, 0, 0, b"") + call)
    assert b"Method not found" in answer
    assert good.check_in(check_in()).retry_after_seconds


def test_the_hand_made_call_is_a_good_one_when_nothing_is_broken(place: Place, service: Service) -> None:
    with ExitStack() as stack:
        connection = line(place, service, "127.0.0.7").open(stack)
        connection.sendall(good_call("CheckIn", good_messages(POPULATION)["CheckIn"]))
        answer, until = b"", time.monotonic() + 5
        while b"grpc-status\x010" not in answer and time.monotonic() < until:
            answer += connection.recv(4096)
    paced = messages.CheckInReply(retry_min_seconds=100.0, retry_max_seconds=200.0)
    assert answer.index(paced.SerializeToString()) > 0


# The fuzzer finds what it is there to find.


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[grpc.Channel]:
    methods = {name: grpc.unary_unary_rpc_method_handler(behaviour) for name in METHODS}
    handler = grpc.method_handlers_generic_handler("fedrec.v1.ModelService", methods)
    server = grpc.server(ThreadPoolExecutor(2), handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        server.stop(0).wait()


def tells_traces(content: bytes, context: grpc.ServicerContext) -> bytes:
    try:
        return content.decode("ascii").encode() and b""
    except UnicodeDecodeError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, traceback.format_exc())
        raise


def tells_paths(_: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.NOT_FOUND, f"no such file: {__file__}")
    raise AssertionError


def hands_out_paths(_: bytes, context: grpc.ServicerContext) -> bytes:
    return f'{{"folder": "{__file__}"}}'.encode()


def lets_errors_through(_: bytes, context: grpc.ServicerContext) -> bytes:
    raise ZeroDivisionError("a bug")


def hangs(_: bytes, context: grpc.ServicerContext) -> bytes:
    time.sleep(0.5)
    return b""


@pytest.mark.parametrize(
    "behaviour", [tells_traces, tells_paths, hands_out_paths, lets_errors_through, hangs]
)
def test_a_service_that_does_wrong_is_found_out(
    behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_fuzz, "CALL_SECONDS", 0.2)
    with serving(behaviour) as channel:
        assert not all_good(fuzz_calls(channel, 12, random.Random(5), POPULATION))
