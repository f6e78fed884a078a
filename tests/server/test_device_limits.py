"""Limits of the device service: malformed, silent and greedy callers keep no device from its cohort."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from device_helpers import JOB, POPULATION, SERVICE, Device, add_job, channel, front_end, limits, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.service_fuzz_calls import INSIDE, NEVER, garbage, mutated
from fedrec.wire.device_messages import PROTOCOL
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices._groups import Grouped
from fedrec_server.devices._uploads import Uploads
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.limits import NETWORK
from fedrec_server.devices.server import FrontEnd
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.network.refusals import Refused

QUICK = replace(
    NETWORK, calls_per_second=1e6, burst=10**6, app_calls_per_second=1e6, app_burst=10**6, message_seconds=0.5
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    with open_state(f"sqlite:///{tmp_path_factory.mktemp('state')}/devices.db") as made:
        add_job(made)
        yield made


@pytest.fixture(scope="module")
def running(state: State) -> Iterator[FrontEnd]:
    DeviceExchange(state, JOB).prepare(wanted(10_000))
    with front_end(state, given=limits(network=QUICK, hold_seconds=0.0)) as made:
        yield made


@pytest.fixture
def device(running: FrontEnd) -> Iterator[Device]:
    made = Device(channel(running.port))
    made.joined()
    yield made
    assert made.stage().state == messages.WAIT
    made.channel.close()


def good(device: Device) -> dict[str, bytes]:
    """One good message per call."""
    session = device.session
    made = {
        "CheckIn": messages.CheckInRequest(protocol=PROTOCOL, population=POPULATION, client_version="0.1.0"),
        "GetTask": messages.TaskRequest(job=JOB),
        "Join": device.join_request(),
        "Stage": messages.StageRequest(session=session, answered=1, answer=b"x" * 40, known=1),
        "Upload": messages.UploadRequest(
            session=session, number=1, total=90, sha256=bytes(32), content=b"y" * 40
        ),
        "Content": messages.ContentRequest(session=session, sha256=bytes(32)),
        "Leave": messages.LeaveRequest(session=bytes(32)),
    }
    return {name: message.SerializeToString() for name, message in made.items()}


def outcome(line: grpc.Channel, method: str, content: bytes) -> str:
    call = line.unary_unary(SERVICE + method, lambda b: b, lambda b: b)
    try:
        call(content, timeout=20)
    except grpc.RpcError as error:
        details = str(error.details())
        assert error.code().name.lower() not in NEVER, (method, content, error)
        assert not any(each in details for each in INSIDE), details
        return str(error.code().name)
    return "answered"


def test_garbage_in_every_call_is_a_code_and_the_service_serves_on(device: Device) -> None:
    rng, seen = random.Random(1), set[str]()
    for _ in range(1500):
        method = rng.choice([*good(device), "None"])
        content = garbage(rng, good(device).get(method, b"\x0a\x01a"))
        if method == "Leave" and device.session in content:
            continue
        seen.add(outcome(device.channel, method, content))
    assert {"answered", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"} <= seen


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from(["CheckIn", "GetTask", "Join", "Stage", "Upload", "Content"]))
def test_a_good_call_with_some_bits_turned_is_a_code(running: FrontEnd, seed: int, method: str) -> None:
    with channel(running.port) as line:
        device = Device(line, session=bytes(32))
        assert outcome(line, method, mutated(random.Random(seed), good(device)[method]))


def test_calls_without_a_message_end_in_time(device: Device, running: FrontEnd) -> None:
    begun = threading.Event()

    def nothing() -> Iterator[bytes]:
        begun.wait(30)
        yield from ()

    with channel(running.port) as line:
        call = line.stream_unary(SERVICE + "CheckIn", lambda b: b, lambda b: b)
        waiting = [call.future(nothing(), timeout=30) for _ in range(6)]
        assert {each.exception().code() for each in waiting} == {grpc.StatusCode.CANCELLED}
        begun.set()


def test_connections_that_say_nothing_do_not_count(state: State) -> None:
    few = replace(QUICK, connections=20, connections_per_address=20, unauthenticated_per_address=8)
    with front_end(state, given=limits(network=few)) as running:
        first = Device(channel(running.port))
        assert first.check_in().job == JOB
        silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(80)]
        assert first.check_in().job == JOB
        assert Device(channel(running.port)).check_in().job == JOB
        for each in silent:
            each.close()


def test_more_calls_than_can_be_held_are_answered_at_once(state: State) -> None:
    exchange = DeviceExchange(state, JOB)
    exchange.prepare(wanted(10_000))
    with front_end(state, given=limits(network=QUICK, held_calls=2, hold_seconds=300.0)) as running:
        devices = [Device(channel(running.port)) for _ in range(3)]
        for device in devices:
            device.joined()
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(device.stage) for device in devices[:2]]
            until = time.monotonic() + 20
            while running.calls.held < 2 and time.monotonic() < until:
                time.sleep(0.05)
            reply = devices[2].stage()
            assert reply.state == messages.WAIT and reply.retry_after_seconds > 0
            exchange.end_all("aborted")
            assert {each.result(timeout=60).reason for each in held} == {"aborted"}


def test_one_session_cannot_call_without_end(state: State) -> None:
    exchange = DeviceExchange(state, JOB)
    exchange.prepare(wanted(10_000))
    given = limits(network=QUICK, hold_seconds=0.0, session_calls_per_second=1e-9, session_burst=5)
    with front_end(state, given=given) as running:
        device, other = Device(channel(running.port)), Device(channel(running.port))
        for each in (device, other):
            each.joined()
        with pytest.raises(grpc.RpcError) as caught:
            for _ in range(20):
                device.stage()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert other.stage().state == messages.WAIT


def test_a_front_end_whose_database_is_gone_says_so_and_recovers(tmp_path: Path) -> None:
    with open_state(f"sqlite:///{tmp_path}/devices.db") as made:
        add_job(made)
        with front_end(made) as running:
            device = Device(channel(running.port))
            with made.write() as connection:
                connection.exec_driver_sql("ALTER TABLE members RENAME TO away")
            with pytest.raises(grpc.RpcError) as caught:
                device.session = bytes(32)
                device.stage()
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "members" not in str(caught.value.details())
            with made.write() as connection:
                connection.exec_driver_sql("ALTER TABLE away RENAME TO members")
            assert device.stage().reason == "unknown"


# The parts.


def test_uploads_stay_within_their_memory_and_idle_ones_give_way() -> None:
    now = [0.0]
    uploads = Uploads(1000, 60, lambda: now[0])
    keys = [(bytes([k]), 1) for k in range(4)]
    assert uploads.add(keys[0], 600, b"h", 0, bytes(10)) == 10
    assert uploads.add(keys[1], 600, b"h", 0, bytes(10)) is None
    assert uploads.add(keys[2], 400, b"h", 0, bytes(10)) == 10
    assert uploads.add(keys[3], 400, b"h", 7, bytes(10)) == 0  # unknown: from the start
    now[0] = 61.0
    assert uploads.add(keys[1], 600, b"h", 0, bytes(10)) == 10
    assert uploads.received(keys[0], 600, b"h") == 0 and uploads.received(keys[2], 400, b"h") == 10
    assert uploads.received(keys[2], 401, b"h") == 0
    uploads.forget(keys[1])
    assert uploads.add(keys[0], 600, b"h", 0, bytes(600)) == 600
    assert uploads.take(keys[0]) is None and uploads.take(keys[0]) is None  # not what its hash says


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=40))
def test_pieces_in_any_order_make_the_answer_or_nothing(pieces: list[tuple[int, int]]) -> None:
    content = bytes(range(50))
    uploads, key, name = Uploads(1000, 60), (b"k", 1), hashlib.sha256(content).digest()
    received = 0
    for offset, size in pieces:
        got = uploads.add(key, 50, name, offset, content[offset : offset + size])
        assert got == (min(max(received, offset + size), 50) if offset == received else received)
        received = got
        if received == 50:
            assert uploads.take(key) == content
            received = 0


def test_a_group_shares_one_transaction_and_its_error() -> None:
    sizes: list[int] = []
    hold = threading.Event()

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        hold.wait(10)
        if 13 in items:
            raise ZeroDivisionError
        return [2 * item for item in items]

    grouped = Grouped("test", 8)
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(grouped.run, work, 0)
        while not sizes:
            time.sleep(0.01)
        others = [pool.submit(grouped.run, work, k) for k in range(1, 11)]
        time.sleep(0.2)
        hold.set()
        assert first.result() == 0 and [each.result() for each in others] == [2 * k for k in range(1, 11)]
        with pytest.raises(ZeroDivisionError):
            grouped.run(work, 13)
        assert grouped.run(work, 5) == 10
    assert max(sizes) == 8
    grouped.close()
    with pytest.raises(Refused, match="stopping"):
        grouped.run(work, 1)
