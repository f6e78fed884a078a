"""The device service: cohorts, questions, answers and sums, over both databases."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from device_helpers import JOB, Crowd, Device, add_job, ask, channel, echo, front_end, limits, vectors, wanted
from postgres import new_database
from sqlalchemy import func, select

from fedrec.core.errors import AggregationAborted, RegistryError, ServiceError
from fedrec.core.messages import Failure, Reply, Summed
from fedrec.wire.device_messages import dump
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.server import FrontEnd
from fedrec_server.devices.state import cohorts, tables
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.rounds.cohorts import Cohort, Patience

LENGTH = 50_000


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/devices.db"
    else:
        with new_database() as made:
            yield made


@pytest.fixture
def state(url: str) -> Iterator[State]:
    with open_state(url) as made:
        add_job(made)
        yield made


@pytest.fixture
def exchange(state: State) -> DeviceExchange:
    return DeviceExchange(state, JOB)


@pytest.fixture
def running(state: State) -> Iterator[FrontEnd]:
    with front_end(state) as made:
        yield made


def never() -> bool:
    return False


@contextmanager
def aside(call: Any, *args: Any) -> Iterator[Future[Any]]:
    """A call of the job, made while devices answer."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *args)


def cohort_of(exchange: DeviceExchange, devices: list[Device]) -> tuple[Cohort, list[str]]:
    """Devices as a complete cohort, in their order."""
    exchange.prepare(wanted(len(devices)))
    for device in devices:
        device.joined()
    cohort = exchange.form(wanted(len(devices)), never)
    assert [each.identity for each in cohort.members] == [each.identity for each in devices]
    return cohort, [each.node for each in cohort.members]


def answer_to(device: Device, reply: messages.StageReply, value: int | None = None) -> bytes:
    """A vector, or an answer of another kind."""
    request = device.question(reply)
    made = vectors(LENGTH)(request)
    if value is not None:
        made.arrays["masked"][:] = value
    return dump(made)


def rows(state: State) -> dict[str, int]:
    with state.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables.METADATA.sorted_tables
        }


# Rounds.


def test_a_cohort_joins_answers_and_is_summed_over_tls(
    state: State, exchange: DeviceExchange, tmp_path: Path
) -> None:
    with front_end(state, tmp_path / "tls") as running:
        devices = [Device(channel(running.port, tmp_path / "tls")) for _ in range(3)]
        with Crowd(devices, vectors(LENGTH)) as crowd:
            cohort = exchange.form(wanted(3), never)
            nodes = [each.node for each in cohort.members]
            assert {each.identity for each in cohort.members} == {each.identity for each in devices}
            model = np.arange(100_000, dtype=np.float32)
            answers = exchange.exchange(ask(nodes, model=model), 30)
            mine = [a.arrays["mine"].tolist() for a in answers.values() if isinstance(a, Reply)]
            assert mine == [[1], [2], [3]]
            summed = exchange.exchange_summed(ask(nodes, "train", model=model), 30, "uint32", LENGTH)
            assert summed.total.tolist() == [6] * LENGTH
            assert sorted(summed.nodes) == nodes and not summed.failures
            exchange.close(cohort, "done")
        assert [end.reason for end in crowd.ends.values()] == ["done"] * 3
    left = {name: count for name, count in rows(state).items() if count}
    assert set(left) == {"jobs", "cohorts", "quotas", "day_keys"}  # nothing of the cohort but its outcome


def test_nothing_that_was_not_asked_costs_a_question(exchange: DeviceExchange) -> None:
    assert exchange.nodes() == [] and exchange.exchange({}, 1) == {}
    assert exchange.exchange_summed({}, 1, "uint32", 3).total.tolist() == [0, 0, 0]


def test_the_next_cohort_forms_while_one_is_at_work(exchange: DeviceExchange, running: FrontEnd) -> None:
    first, _ = cohort_of(exchange, [Device(channel(running.port))])
    exchange.prepare(wanted(1, round=2))
    exchange.prepare(wanted(1, round=2))  # again changes nothing
    second, _ = cohort_of(exchange, [Device(channel(running.port))])
    assert second.id != first.id
    exchange.close(first, "done")
    exchange.close(second, "done")
    exchange.close(second, "failed")  # again is free


def test_too_few_devices_are_sent_away_with_the_reason(exchange: DeviceExchange, running: FrontEnd) -> None:
    exchange.prepare(wanted(2))
    device = Device(channel(running.port)).joined()
    with aside(exchange.form, wanted(2, wait_seconds=0.5), never) as forming:
        end = device.next()
        with pytest.raises(AggregationAborted, match="fewer than 2 devices joined within"):
            forming.result()
    assert (end.state, end.reason) == (messages.OVER, "too_few") and 10 <= end.retry_after_seconds <= 15


def test_a_cohort_starts_with_the_least_at_its_deadline(exchange: DeviceExchange, running: FrontEnd) -> None:
    exchange.prepare(wanted(3))
    Device(channel(running.port)).joined()
    assert len(exchange.form(wanted(3, 1, wait_seconds=0.5), never).members) == 1


def test_no_cohort_is_formed_once_a_stop_is_asked_for(exchange: DeviceExchange) -> None:
    with pytest.raises(AggregationAborted, match="stopped"):
        exchange.form(wanted(1), lambda: True)


def test_a_full_cohort_takes_no_more(exchange: DeviceExchange, running: FrontEnd) -> None:
    devices = [Device(channel(running.port)) for _ in range(3)]
    exchange.prepare(wanted(3, most=2))
    devices[0].joined()
    assert devices[1].join().session
    late = devices[2].join()
    assert not late.session and late.retry_after_seconds > 0


def test_a_device_that_leaves_is_missing_at_once(exchange: DeviceExchange, running: FrontEnd) -> None:
    stays, leaves = Device(channel(running.port)), Device(channel(running.port))
    cohort, nodes = cohort_of(exchange, [stays, leaves])
    with aside(exchange.exchange, ask(nodes), 200) as asked:  # its end is not waited for
        reply = stays.next()
        stays.known = reply.number
        leaves.call("Leave", messages.LeaveRequest(session=leaves.session))
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(stays.next, answered=1, answer=dump(echo(stays.question(reply))))
            answers = asked.result(timeout=60)
            assert isinstance(answers[nodes[0]], Reply) and isinstance(answers[nodes[1]], Failure)
            exchange.close(cohort, "failed")
            assert held.result(timeout=60).reason == "failed"
    assert leaves.next().reason in ("unknown", "failed")


def test_a_stage_does_not_wait_long_for_the_last_silent_device(state: State, running: FrontEnd) -> None:
    patient = DeviceExchange(state, JOB, patience=Patience(missing=0.25, factor=2.0))
    devices = [Device(channel(running.port)) for _ in range(4)]
    cohort, nodes = cohort_of(patient, devices)
    with aside(patient.exchange, ask(nodes), 10_000) as asked:  # its end is not waited for
        for device in devices[:3]:
            reply = device.next()
            device.piece(reply.number, dump(echo(device.question(reply))), 0, 1 << 20)
        answers = asked.result(timeout=120)
    assert [isinstance(answers[node], Reply) for node in nodes] == [True, True, True, False]
    patient.close(cohort, "done")


def test_held_calls_are_released_when_the_cohort_is_over(exchange: DeviceExchange, state: State) -> None:
    with front_end(state, given=limits(hold_seconds=300.0)) as running:
        devices = [Device(channel(running.port)) for _ in range(4)]
        cohort, _ = cohort_of(exchange, devices)
        with ThreadPoolExecutor(4) as pool:
            held = [pool.submit(device.stage) for device in devices]
            time.sleep(0.3)
            assert not any(each.done() for each in held)
            exchange.close(cohort, "aborted")
            ends = [each.result(timeout=60) for each in held]
        assert {(end.state, end.reason) for end in ends} == {(messages.OVER, "aborted")}
        assert all(end.retry_after_seconds >= 300 for end in ends)


def test_a_stopping_front_end_answers_held_calls(exchange: DeviceExchange, state: State) -> None:
    with front_end(state, given=limits(hold_seconds=300.0)) as running:
        device = Device(channel(running.port))
        cohort_of(exchange, [device])
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(device.stage)
            time.sleep(0.3)
            running.stop()
            assert held.result(timeout=60).state == messages.WAIT


def test_a_killed_jobs_cohort_is_ended_by_the_next_process(
    exchange: DeviceExchange, state: State, running: FrontEnd
) -> None:
    device = Device(channel(running.port))
    cohort_of(exchange, [device])
    DeviceExchange(state, JOB)
    assert device.next().reason == "failed"
    with pytest.raises(RegistryError, match="create it first"):
        DeviceExchange(state, "0" * 32)


# Answers.


def test_a_late_answer_is_refused_and_its_device_is_over(exchange: DeviceExchange, running: FrontEnd) -> None:
    quick, slow = Device(channel(running.port)), Device(channel(running.port))
    _, nodes = cohort_of(exchange, [quick, slow])
    with aside(exchange.exchange_summed, ask(nodes, "train"), 4.0, "uint32", LENGTH) as asked:
        replies = [device.next() for device in (quick, slow)]
        assert quick.upload(1, answer_to(quick, replies[0])).accepted
        summed: Summed = asked.result()
    assert summed.total[0] == 1 and list(summed.failures) == [nodes[1]]
    late = slow.upload(1, answer_to(slow, replies[1]))
    assert not late.accepted and late.reason == "late"
    assert quick.upload(1, answer_to(quick, replies[0])).accepted  # asked again: it counted
    with aside(exchange.exchange, ask(nodes[:1]), 30) as asked:
        slow.known = quick.known = 1
        assert slow.next(answered=1).reason == "late"
        reply = quick.next()
        assert reply.number == 2
        quick.stage(answered=2, answer=dump(echo(quick.question(reply))))
        assert isinstance(asked.result()[nodes[0]], Reply)


def test_an_upload_resumes_after_a_cut_and_counts_once(exchange: DeviceExchange, running: FrontEnd) -> None:
    device = Device(channel(running.port))
    _, nodes = cohort_of(exchange, [device])
    with aside(exchange.exchange_summed, ask(nodes, "train"), 60, "uint32", LENGTH) as asked:
        content = answer_to(device, device.next())
        assert device.piece(1, content, 0, 90_000).received == 90_000
        device.channel.close()
        device.channel = channel(running.port)
        assert device.piece(1, content, 0, 0).received == 90_000  # how much has come
        assert device.piece(1, content, 5_000, 90_000).received == 90_000  # not where it continues
        reply = device.piece(1, content, 90_000, 256 << 10)
        assert reply.accepted and device.piece(1, content, 0, 0).accepted
        assert device.upload(1, content).accepted
        summed = asked.result()
    assert summed.total.tolist() == [1] * LENGTH


def test_what_is_not_the_vector_counts_as_refused(exchange: DeviceExchange, running: FrontEnd) -> None:
    devices = [Device(channel(running.port)) for _ in range(5)]
    _, nodes = cohort_of(exchange, devices)
    broken = [
        dump(Reply("train", 1, "tuning", {"masked": np.ones(LENGTH - 1, np.uint32)})),
        dump(Reply("train", 1, "tuning", {"masked": np.ones(LENGTH, np.float32)})),
        dump(Reply("train", 2, "tuning", {"masked": np.ones(LENGTH, np.uint32)})),
        b"FDM1" + bytes(100_000),
    ]
    with aside(exchange.exchange_summed, ask(nodes, "train"), 60, "uint32", LENGTH) as asked:
        for device, content in zip(devices[1:], broken, strict=True):
            device.next()
            assert device.upload(1, content).accepted
        assert devices[0].upload(1, answer_to(devices[0], devices[0].next())).accepted
        summed: Summed = asked.result()
    assert summed.nodes == (nodes[0],) and summed.total.tolist() == [1] * LENGTH
    assert {each.reason for each in summed.failures.values()} == {"refused: format"}


def test_an_upload_that_is_not_what_its_hash_says_is_begun_again(
    exchange: DeviceExchange, running: FrontEnd
) -> None:
    device = Device(channel(running.port))
    _, nodes = cohort_of(exchange, [device])
    with aside(exchange.exchange_summed, ask(nodes, "train"), 60, "uint32", LENGTH) as asked:
        content = answer_to(device, device.next())
        device.call(
            "Upload",
            messages.UploadRequest(
                session=device.session, number=1, total=len(content), sha256=bytes(32), content=content
            ),
        )
        assert device.piece(1, content, 0, 0).received == 0
        assert device.upload(1, content).accepted
        assert asked.result().total[0] == 1


def test_a_refusal_is_a_failure_with_its_code(exchange: DeviceExchange, running: FrontEnd) -> None:
    device = Device(channel(running.port))
    _, nodes = cohort_of(exchange, [device])
    with aside(exchange.exchange, ask(nodes), 60) as asked:
        device.next()
        device.known = 1
        with ThreadPoolExecutor(1) as pool:
            pool.submit(device.stage, answered=1, refused=True, answer=b"threshold")
            assert asked.result()[nodes[0]] == Failure("refused: threshold")
            exchange.end_all("failed")


# Several front ends.


@contextmanager
def process(url: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A front end as its own process; its port."""
    command = [
        sys.executable,
        "-m",
        "fedrec_server.cli.main",
        "devices",
        "start",
        "--insecure",
        "--port",
        "0",
    ]
    started = subprocess.Popen([*command, "--database", url], stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    try:
        for line in started.stderr:
            if found := re.search(r"serving devices on 127\.0\.0\.1:(\d+)", line):
                yield int(found[1]), started
                break
        else:
            raise AssertionError("it did not start")
    finally:
        started.kill()
        started.communicate()


def test_a_front_end_killed_within_a_stage_costs_no_vector_and_counts_none_twice(
    url: str, exchange: DeviceExchange
) -> None:
    with process(url) as (first, killed), process(url) as (second, _):
        devices = [Device(channel(first)) for _ in range(4)]
        _, nodes = cohort_of(exchange, devices)
        with aside(exchange.exchange_summed, ask(nodes, "train"), 120, "uint32", LENGTH) as asked:
            contents = [answer_to(device, device.next()) for device in devices]
            for k in (0, 1):
                assert devices[k].upload(1, contents[k]).accepted
            assert devices[2].piece(1, contents[2], 0, 90_000).received == 90_000
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            with pytest.raises(grpc.RpcError):
                devices[2].piece(1, contents[2], 90_000, 256 << 10)
            for device in devices:
                device.channel = channel(second)
            assert devices[0].upload(1, contents[0]).accepted  # again, at another one
            assert devices[2].piece(1, contents[2], 90_000, 1000).received == 0
            for k in (2, 3):
                assert devices[k].upload(1, contents[k]).accepted
            summed: Summed = asked.result(timeout=60)
    assert summed.total.tolist() == [1 + 2 + 3 + 4] * LENGTH and sorted(summed.nodes) == nodes


def test_the_same_answer_at_two_front_ends_at_once_counts_once(
    state: State, exchange: DeviceExchange, running: FrontEnd
) -> None:
    with front_end(state) as other:
        devices = [Device(channel(running.port)) for _ in range(3)]
        doubles = [Device(channel(other.port), key=device.key) for device in devices]
        _, nodes = cohort_of(exchange, devices)
        with (
            aside(exchange.exchange_summed, ask(nodes, "train"), 60, "uint32", LENGTH) as asked,
            ThreadPoolExecutor(6) as pool,
        ):
            contents = [answer_to(device, device.next()) for device in devices]
            for device, double in zip(devices, doubles, strict=True):
                double.session = device.session
            uploads = [
                pool.submit(each.upload, 1, content)
                for pair in zip(devices, doubles, strict=True)
                for each, content in zip(pair, [contents[devices.index(pair[0])]] * 2, strict=True)
            ]
            assert all(each.result().accepted or each.result().reason == "late" for each in uploads)
            assert asked.result().total.tolist() == [6] * LENGTH


def test_a_lost_answer_to_join_is_asked_for_again(exchange: DeviceExchange, running: FrontEnd) -> None:
    device = Device(channel(running.port))
    exchange.prepare(wanted(2))
    device.joined()
    first = device.session
    assert device.join().session not in (b"", first)  # the same place, a new session
    other = Device(channel(running.port))
    other.join()
    cohort = exchange.form(wanted(2), never)
    assert len(cohort.members) == 2
    exchange.close(cohort, "done")


# State.


def test_the_tables_are_those_of_the_last_version(state: State) -> None:
    with state.write() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.METADATA) == []


def test_a_database_is_opened_by_several_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_state, [url] * 4))
    for each in opened:
        each.close()
        each.close()


def test_a_failed_transaction_leaves_nothing(state: State) -> None:
    def fail() -> None:
        with state.write() as connection:
            cohorts.change(connection, "none")
            connection.execute(tables.DAY_KEYS.insert().values(day=1, key=bytes(32)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert rows(state)["day_keys"] == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mysql://host/name",
        "sqlite://",
        "sqlite:////proc/none/x.db",
        "postgresql://u:secret@127.0.0.1:1/x",
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(ServiceError) as caught:
        open_state(url)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_device_that_has_not_called_for_long_is_not_in_the_cohort(
    state: State, exchange: DeviceExchange, running: FrontEnd
) -> None:
    gone, here = Device(channel(running.port)), Device(channel(running.port))
    exchange.prepare(wanted(2))
    for device in (gone, here):
        device.joined()
    with state.write() as connection:
        seen = time.time() - cohorts.HERE_SECONDS - 1
        where = tables.MEMBERS.c.identity == gone.identity
        connection.execute(tables.MEMBERS.update().where(where).values(seen=seen))
    cohort = exchange.form(wanted(2, 1, wait_seconds=1.0), never)
    assert [each.identity for each in cohort.members] == [here.identity]
