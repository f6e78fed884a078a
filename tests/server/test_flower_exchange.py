"""The exchange over a Grid: late, missing, broken, forged and failed answers cost their own node only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any

import flower_helpers  # noqa: F401  (before flwr)
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.wire.messages import encode
from fedrec_server.federation import flower_app
from fedrec_server.federation.flower_app import GridExchange, parse_records, record_maker

Answer = Callable[[Message], Message | None]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def reply_to(message: Message, **changes: Any) -> Message:
    header = message.content["header"]
    reply = Reply(
        header["kind"], header["round"], header["phase"], {"update": np.ones(3, np.float32)}, {"users": 2}
    )
    arrays, head = encode(reply)
    records: dict[str, Any] = {
        "arrays": ArrayRecord({name: Array(values) for name, values in arrays.items()}),
        "header": ConfigRecord(head),
    }
    return Message(RecordDict(records | changes), reply_to=message)


class FakeGrid(Grid):
    """Real messages, a clock of its own; `answers` says what each node does, `delay` how long it takes."""

    def __init__(self, answers: dict[int, Answer], delay: dict[int, float] | None = None) -> None:
        self.answers, self.delay = answers, delay or {}
        self.time = 0.0
        self.activated = dict.fromkeys(answers, "0")
        self.names: dict[int, str] = {}
        self.sent: list[Message] = []
        self.broken = False

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("the exchange must not use this part of the Grid")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.answers)

    def get_nodes(self) -> Iterable[Any]:
        if self.broken:
            raise ConnectionError("away")
        return [
            SimpleNamespace(
                node_id=n,
                name=self.names.get(n, ""),
                registered_at=f"{k:04d}",
                last_activated_at=self.activated[n],
            )
            for k, n in enumerate(self.answers)
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.broken:
            raise ConnectionError("away")
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            message.metadata.__dict__["sent_at"] = self.time
            self.sent.append(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.broken:
            raise ConnectionError("away")
        out = []
        for message in self.sent:
            node = message.metadata.dst_node_id
            due = message.metadata.__dict__["sent_at"] + self.delay.get(node, 0.0)
            if message.metadata.message_id in list(message_ids) and due <= self.time:
                answer = self.answers[node](message)
                out += [] if answer is None else [answer]
        return out

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError("the exchange must not use this part of the Grid")

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def exchange(self, left: Callable[[], Collection[str]] = frozenset) -> GridExchange:
        out = GridExchange(self, left=left, clock=lambda: self.time, sleep=self.sleep)
        out.nodes()
        return out


def ask(grid: FakeGrid, deadline: float = 5.0) -> dict[str, Reply | Failure]:
    exchange = grid.exchange()
    return exchange.exchange({n: Request("train", 3, "refit") for n in exchange.nodes()}, deadline)


def test_good_replies_come_back_whole_and_in_order() -> None:
    answers = ask(FakeGrid({77: reply_to, 5: reply_to}))
    assert list(answers) == ["0", "1"]
    for reply in answers.values():
        assert isinstance(reply, Reply)
        assert (reply.kind, reply.round, reply.phase, reply.meta) == ("train", 3, "refit", {"users": 2})
        assert reply.arrays["update"].dtype == np.float32 and reply.arrays["update"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["share", "confirm", "unmask"])
def test_a_short_question_that_is_lost_on_the_way_is_sent_once_more(kind: str) -> None:
    def once_lost(message: Message) -> Message | None:
        return reply_to(message) if message.metadata.message_id != "m0" else None

    grid = FakeGrid({77: once_lost, 5: reply_to})
    exchange = grid.exchange()
    answers = exchange.exchange({n: Request(kind, 3, "refit") for n in exchange.nodes()}, 8.0)
    assert all(isinstance(reply, Reply) for reply in answers.values())
    assert [message.metadata.dst_node_id for message in grid.sent] == [77, 5, 77] and grid.time < 8.0
    assert exchange.nodes() == ["0", "1"]


@pytest.mark.parametrize("kind", ["advertise", "train", "evaluate"])
def test_a_question_whose_answer_cannot_be_had_again_for_nothing_is_sent_once(kind: str) -> None:
    grid = FakeGrid({77: lambda message: None})
    exchange = grid.exchange()
    exchange.exchange({"0": Request(kind, 3, "refit")}, 8.0)
    assert len(grid.sent) == 1


def broken_array(message: Message) -> Message:
    array = Array("float32", (10**9,), "numpy.ndarray", b"\x93NUMPY\x01\x00garbage")
    return reply_to(message, arrays=ArrayRecord({"update": array}))


def forged(message: Message) -> Message:
    answer = reply_to(message)
    answer.metadata.__dict__["_src_node_id"] = 999
    return answer


def pickled(message: Message) -> Message:
    return reply_to(
        message, arrays=ArrayRecord({"x": Array("object", (1,), "pickle", b"cos\nsystem\n(S'x'\ntR.")})
    )


def with_header(**header: Any) -> Answer:
    return lambda message: reply_to(message, header=ConfigRecord(header))


ENVELOPE: dict[str, Any] = {"kind": "train", "round": 3, "phase": "refit"}
BAD: dict[str, tuple[Answer, str]] = {
    "silent": (lambda message: None, "no answer within 5 s"),
    "refusal": (lambda message: Message(Error(1001, "declined"), reply_to=message), "declined: the node declines"),
    "words for a code": (
        lambda message: Message(Error(1001, "RunError: no shard in /home/ana"), reply_to=message),
        "unknown code",
    ),
    "error without reason": (lambda message: Message(Error(5), reply_to=message), "error 5"),
    "no records": (lambda message: Message(RecordDict(), reply_to=message), "records"),
    "extra record": (lambda message: reply_to(message, more=ConfigRecord({"a": 1})), "records"),
    "swapped records": (lambda message: reply_to(message, arrays=ConfigRecord({"a": 1})), "another type"),
    "unknown header": (with_header(**ENVELOPE, x=1), "unknown"),
    "no header": (with_header(), "kind"),
    "wrong type in header": (with_header(**(ENVELOPE | {"round": 3.5})), "round"),
    "list in header": (with_header(**(ENVELOPE | {"meta.a": [1]})), "list"),
    "broken array": (broken_array, "cannot be read"),
    "pickle": (pickled, "cannot be read"),
    "text array": (lambda message: reply_to(message, arrays=ArrayRecord({"x": Array(np.array(["a"]))})), "numbers"),
    "forged": (forged, "another node"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_node_is_a_failure_and_the_others_are_heard(name: str) -> None:
    answer, reason = BAD[name]
    answers = ask(FakeGrid({1: reply_to, 2: answer, 3: reply_to}))
    assert isinstance(answers["0"], Reply) and isinstance(answers["2"], Reply)
    assert isinstance(answers["1"], Failure) and reason in answers["1"].reason
    assert len(answers["1"].reason) < 400


def test_late_is_too_late_and_just_in_time_is_in_time() -> None:
    answers = ask(FakeGrid({1: reply_to, 2: reply_to}, {1: 4.9, 2: 5.1}))
    assert isinstance(answers["0"], Reply)
    assert answers["1"] == Failure("no answer within 5 s")


def test_messages_expire_with_the_deadline() -> None:
    grid = FakeGrid({1: reply_to})
    ask(grid, 7.0)
    assert grid.sent[0].metadata.ttl == 7.0 and grid.sent[0].metadata.message_type == "train"


def test_a_node_that_missed_a_deadline_rests_until_it_comes_anew() -> None:
    grid = FakeGrid({1: reply_to, 2: lambda message: None})
    exchange = grid.exchange()
    exchange.exchange({n: Request("hello", 0) for n in exchange.nodes()}, 30.0)
    assert exchange.nodes() == ["0"]
    grid.activated[2] = "later"
    assert exchange.nodes() == ["0", "1"]


def test_a_node_that_missed_a_deadline_is_asked_again_after_as_long() -> None:
    grid = FakeGrid({1: lambda message: None})
    exchange = grid.exchange()
    exchange.exchange({"0": Request("hello", 0)}, 30.0)
    grid.time += 29.0
    assert exchange.nodes() == []
    grid.time += 2.0
    assert exchange.nodes() == ["0"]


def test_a_node_that_has_left_is_not_waited_for_and_what_it_sent_before_counts() -> None:
    """All leave after two seconds of an exchange: one has answered, one is late, the third is not asked again."""
    grid = FakeGrid({1: reply_to, 2: lambda message: None, 3: reply_to}, {3: 2.0})
    exchange = grid.exchange(lambda: {"0", "1", "2"} if grid.time >= 2.0 else set())
    answers = exchange.exchange({n: Request("train", 1, "refit") for n in exchange.nodes()}, 600.0)
    assert isinstance(answers["0"], Reply) and isinstance(answers["2"], Reply)
    assert answers["1"] == Failure("the node has left") and grid.time < 5.0
    assert exchange.nodes() == [] and exchange.wait_for(3, 100.0) == [] and grid.time < 5.0


def test_an_unreachable_superlink_raises_nothing() -> None:
    grid = FakeGrid({1: reply_to})
    exchange = grid.exchange()
    grid.broken = True
    assert exchange.nodes() == []
    assert isinstance(exchange.exchange({"0": Request("hello", 0)}, 2.0)["0"], Failure)


def test_a_superlink_that_comes_back_before_the_deadline_costs_nothing() -> None:
    grid = FakeGrid({1: reply_to})
    exchange = grid.exchange()
    inner = grid.pull_messages
    grid.pull_messages = lambda ids: inner(ids) if grid.time > 1.0 else (_ for _ in ()).throw(ConnectionError)  # type: ignore[method-assign]
    assert isinstance(exchange.exchange({"0": Request("hello", 0)}, 5.0)["0"], Reply)


def test_unknown_nodes_and_refused_messages_are_failures() -> None:
    grid = FakeGrid({1: reply_to})
    exchange = grid.exchange()
    assert isinstance(exchange.exchange({"9": Request("hello", 0)}, 1.0)["9"], Failure)
    grid.push_messages = lambda messages: [""]  # type: ignore[method-assign]
    assert isinstance(exchange.exchange({"0": Request("hello", 0)}, 1.0)["0"], Failure)


def test_names_are_the_operators_else_numbers_and_stay() -> None:
    grid = FakeGrid({40: reply_to, 30: reply_to, 20: reply_to})
    grid.names[30] = "hospital"
    exchange = grid.exchange()
    assert exchange.nodes() == ["0", "2", "hospital"]
    del grid.answers[40]
    assert exchange.nodes() == ["2", "hospital"]


def test_two_nodes_registered_under_one_name_are_two_nodes() -> None:
    grid = FakeGrid({1: reply_to, 2: reply_to})
    grid.names = {1: "clinic", 2: "clinic"}
    assert grid.exchange().nodes() == ["1", "clinic"]


def test_waiting_for_nodes_ends_at_its_time() -> None:
    grid = FakeGrid({1: reply_to})
    assert grid.exchange().wait_for(3, 20.0) == ["0"]
    assert 20.0 <= grid.time < 22.0


def test_a_request_to_many_nodes_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Request] = []
    monkeypatch.setattr(flower_app, "encode", lambda request: (made.append(request), encode(request))[1])
    exchange = FakeGrid(dict.fromkeys(range(1, 6), reply_to)).exchange()
    request = Request("hello", 0)
    answers = exchange.exchange(dict.fromkeys(exchange.nodes(), request), 5.0)
    assert len(answers) == 5 and made == [request]


def test_every_node_gets_records_of_its_own() -> None:
    make = record_maker(
        Request("train", 1, "tuning", {"table": np.arange(60_000.0).reshape(2, -1)}, {"persist": True})
    )
    first, second = make(), make()
    first["arrays"].pop("table")
    first["header"]["round"] = 9
    reply = parse_records(second)
    assert reply.round == 1 and reply.meta == {"persist": True}
    assert reply.arrays["table"][:, :2].tolist() == [[0, 1], [30_000, 30_001]]


@pytest.mark.parametrize("packed", [b"", b"nonsense", b"\xff" * 64])
def test_bytes_that_are_no_arrays_are_refused(packed: bytes) -> None:
    header = {"kind": "hello", "round": 0, "phase": "tuning", "packed": packed}
    with pytest.raises(ProtocolError, match="packed"):
        parse_records(RecordDict({"header": ConfigRecord(header)}))


@pytest.mark.parametrize("values", [np.zeros((0, 4), np.float32), np.array(3.0), np.array([True])])
def test_odd_shapes_survive_flowers_own_encoding(values: Any) -> None:
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    sent = record_maker(Request("train", 1, "tuning", {"x": values}))()
    got = parse_records(recorddict_from_proto(recorddict_to_proto(sent))).arrays["x"]
    assert got.shape == values.shape and got.dtype == values.dtype and got.tolist() == values.tolist()
