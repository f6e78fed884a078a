"""A session with made-up questions: what is sent, when it is charged, and what a stop or a cut connection changes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_helpers import Scripted, sent, vector_reply

from fedrec.core.errors import AggregationRefused, ServiceError, StoreError
from fedrec.core.interruption import Interrupted, check, interruptible
from fedrec.core.messages import Reply, Request
from fedrec.core.refusal_reasons import Reason
from fedrec.wire.device_messages import dump, load, split
from fedrec_client.training.cohort_session import CohortSession, Ending
from fedrec_client.training.device_service import StageAnswer

STAGES = ("advertise", "share", "train", "confirm", "unmask")


class Node:
    """Answers with a few bytes, with a vector to "train"; notes what it was asked."""

    def __init__(self, length: int = 8) -> None:
        self.length, self.asked = length, list[str]()
        self.refuses: str | None = None

    def handle(self, request: Request) -> Reply:
        self.asked.append(request.kind)
        if request.kind == self.refuses:
            raise AggregationRefused("words about the data", Reason.COHORT)
        if request.kind == "train":
            return vector_reply(request, self.length)
        return Reply(request.kind, request.round, request.phase, {"advert": np.zeros(4, np.uint8)}, {})


def question(number: int, kind: str, own: dict[str, Any] | None = None, common: bytes = b"") -> StageAnswer:
    request = Request(kind, 1, "refit", own or {"a": np.array([number])}, {})  # type: ignore[arg-type]
    digest = hashlib.sha256(common).digest() if common else b""
    return StageAnswer(
        "question",
        number=number,
        common=digest,
        common_bytes=len(common),
        own=dump(request),
        deadline_seconds=30.0,
    )


def questions() -> list[StageAnswer]:
    return [question(number, kind) for number, kind in enumerate(STAGES, 1)]


class Run:
    """A session over a script.

    Attributes:
        charges: how many calls had come when the session was charged.
    """

    def __init__(self, service: Scripted, node: Any = None, charge: Callable[[], None] | None = None) -> None:
        self.service, self.node = service, node or Node()
        self.charges: list[int] = []
        self.stopping = threading.Event()

        def note() -> None:
            self.charges.append(len(service.calls))
            if charge is not None:
                charge()

        self.session = CohortSession(
            service,
            b"s" * 32,
            self.node,
            charge=note,
            stopping=self.stopping,
            deadline=time.monotonic() + 60,
        )

    def end(self) -> Ending:
        return self.session.run()


def test_a_session_answers_its_questions_and_is_charged_once() -> None:
    run = Run(Scripted(stages=questions()))
    ending = run.end()
    assert (ending.reason, ending.sent, ending.retry_after_seconds) == ("done", True, 60.0)
    assert run.node.asked == list(STAGES)
    answered = [what[0] for what in sent(run.service, "stage")]
    assert answered == [0, 1, 2, 3, 4, 5]
    # Adverts and shares had left, the vector had not.
    assert run.charges == [3]
    assert ending.bytes_up == sum(len(what[1]) for what in sent(run.service, "stage"))


@pytest.mark.parametrize("kind", STAGES)
def test_a_refusal_leaves_as_a_code_and_costs_only_where_data_were_read(kind: str) -> None:
    run = Run(Scripted(stages=questions()))
    run.node.refuses = kind
    run.end()
    number = STAGES.index(kind) + 1
    (found,) = [what for what in sent(run.service, "stage") if what[2]]
    assert found[:2] == (number, b"secagg-cohort")
    assert run.charges == [3]


def test_nothing_of_the_vector_leaves_when_the_charge_fails() -> None:
    def full() -> None:
        raise StoreError("nothing left, because the charge cannot be kept: disk full")

    run = Run(Scripted(stages=questions()), charge=full)
    ending = run.end()
    assert "charge cannot be kept" in ending.reason and not ending.sent
    assert [what[0] for what in sent(run.service, "stage")] == [0, 1, 2]
    assert not sent(run.service, "upload")


@pytest.mark.parametrize("size", [10, 20_000, 200_000])
def test_a_long_vector_travels_in_pieces(size: int) -> None:
    run = Run(Scripted(stages=questions()), Node(size))
    ending = run.end()
    assert ending.sent
    if size == 10:
        assert not sent(run.service, "upload")
        return
    whole = bytes(run.service.uploads[3])
    assert load(whole, Reply).arrays["masked"].size == size
    assert ending.bytes_up >= 4 * size


@given(cuts=st.lists(st.integers(0, 30), max_size=12))
def test_a_connection_that_breaks_changes_no_byte(cuts: list[int]) -> None:
    """Whichever calls fail before they are answered, the same answers arrive, and each is charged once."""
    count = 0

    def fail(name: str) -> None:
        nonlocal count
        count += 1
        if count in cuts:
            raise ServiceError("cut")

    service = Scripted(stages=questions(), before=fail)
    run = Run(service, Node(20_000))
    run.session._sleep = lambda seconds: None  # type: ignore[method-assign]
    ending = run.end()
    assert ending.reason == "done" and ending.sent and len(run.charges) == 1
    answers = {what[0]: what[1] for what in sent(service, "stage") if what[0]}
    assert set(answers) == {1, 2, 4, 5}
    assert load(bytes(service.uploads[3]), Reply).arrays["masked"].size == 20_000
    assert run.node.asked == list(STAGES)


@pytest.mark.parametrize("moment", range(9))
def test_after_a_stop_nothing_leaves(moment: int) -> None:
    """The stop comes while call number `moment` is being made."""
    calls: list[str] = []

    def stop(name: str) -> None:
        calls.append(name)
        if len(calls) == moment + 1:
            run.stopping.set()

    run = Run(Scripted(stages=questions(), before=stop), Node(20_000))
    ending = run.end()
    assert len(calls) == min(moment + 1, 8)
    if len(calls) <= moment or moment == 7:  # it was over before
        assert ending.reason == "done"
    else:
        assert ending.reason == "stopped"
        assert bool(run.charges) == (moment >= 3)


def test_a_stop_interrupts_a_computation() -> None:
    class Endless(Node):
        def handle(self, request: Request) -> Reply:
            while True:
                check()
                time.sleep(0.001)

    run = Run(Scripted(stages=questions()), Endless())
    threading.Timer(0.2, run.stopping.set).start()
    assert run.end().reason == "stopped"


def test_a_computation_of_another_thread_is_not_interrupted() -> None:
    flag = threading.Event()
    flag.set()
    check()
    with interruptible(flag):
        with pytest.raises(Interrupted):
            check()
        with interruptible(threading.Event()):
            check()
    check()


def test_the_common_part_of_a_question_comes_in_pieces_and_is_checked() -> None:
    model = np.arange(50_000, dtype=np.float32)
    requests = {
        str(k): Request("train", 1, "refit", {"model": model, "mine": np.array([k])}) for k in range(2)
    }
    common, own = split(requests)
    asked = StageAnswer(
        "question",
        number=1,
        common=hashlib.sha256(common).digest(),
        common_bytes=len(common),
        own=own["1"],
        deadline_seconds=30.0,
    )
    seen: list[Request] = []

    class Watching(Node):
        def handle(self, request: Request) -> Reply:
            seen.append(request)
            return super().handle(request)

    service = Scripted(stages=[asked], contents={asked.common: common}, piece=1 << 14)
    assert Run(service, Watching()).end().reason == "done"
    np.testing.assert_array_equal(seen[0].arrays["model"], model)
    assert seen[0].arrays["mine"] == 1 and len(sent(service, "content")) > 5
    for broken in (common[:-1] + b"x", common[:-8]):
        wrong = Scripted(stages=[asked], contents={asked.common: broken})
        run = Run(wrong, Watching())
        assert run.end().reason == "protocol" and not run.charges


def test_a_question_that_came_before_is_not_answered_in_another_way() -> None:
    again = question(3, "train", {"a": np.array([99])})
    run = Run(Scripted(stages=[*questions()[:3], again]))
    assert run.end().reason == "protocol"
    assert run.node.asked == ["advertise", "share", "train"]


@pytest.mark.parametrize("own", [b"", b"FDM1", b"x" * 100])
def test_a_question_that_cannot_be_read_ends_the_session(own: bytes) -> None:
    broken = StageAnswer("question", number=1, own=own, deadline_seconds=30.0)
    run = Run(Scripted(stages=[broken]))
    assert run.end().reason == "protocol" and not run.charges and not run.node.asked


def test_a_stage_that_cannot_be_reached_in_time_ends_the_session() -> None:
    def gone(name: str) -> None:
        if name == "upload":
            raise ServiceError("gone")

    late = [*questions()[:2], question(3, "train")]
    late[2] = StageAnswer("question", number=3, own=late[2].own, deadline_seconds=0.2)
    run = Run(Scripted(stages=late, before=gone), Node(20_000))
    ending = run.end()
    assert ending.reason == "unreachable" and not ending.sent and len(run.charges) == 1
