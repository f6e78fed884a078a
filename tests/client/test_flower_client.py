"""The node's side of Flower: messages in, messages out; errors in one line, nothing of the data in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flower_helpers
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import RunError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.recommenders.registry import build
from fedrec.rounds.settings import RoundSettings
from fedrec_client.node import flower_app
from fedrec_client.node.flower_app import StateMemory
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node
from fedrec_server.federation.flower_app import parse_records, record_maker
from fedrec_server.rounds.coordinator import open_coordinator
from fedrec_simulations.engines.in_process import run_in_process


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flower_helpers.lay_out(tmp_path_factory.mktemp("run"), 2, RoundSettings(rounds=1))


def context(node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    return Context(run_id=1, node_id=7, node_config=node_config, state=RecordDict(), run_config=run_config)


def ask(request: Request | RecordDict, where: Context) -> Message:
    content = request if isinstance(request, RecordDict) else record_maker(request)()
    message = Message(content, 7, "train", ttl=60.0)
    message.metadata.__dict__["_message_id"] = "m1"
    return flower_app.serve(message, where)


def train_request(run: Path, **meta: Any) -> Request:
    n_items = open_node(run / "nodes" / "0")._split.train.n_items
    return Request("train", 1, "refit", build(flower_helpers.MODEL).init_shared(n_items, 5), meta)


def test_an_answer_is_that_of_the_node_itself(run: Path) -> None:
    request = train_request(run)
    answer = ask(request, context({"partition-id": 0, "num-partitions": 2}, {"run-dir": str(run)}))
    got, expected = parse_records(answer.content), open_node(run / "nodes" / "0").handle(request)
    assert isinstance(got, Reply)
    assert (got.kind, got.round, got.phase, got.meta) == ("train", 1, "refit", expected.meta)
    np.testing.assert_array_equal(got.arrays["update"], expected.arrays["update"])


def test_local_state_is_written_even_if_the_coordinator_wants_none(run: Path) -> None:
    where = context({"partition-id": 1, "num-partitions": 2}, {"run-dir": str(run)})
    assert ask(train_request(run, persist=False), where).has_content()
    assert list((run / "nodes" / "1" / "local").glob("refit-*"))


def test_in_a_deployment_the_coordinator_does_not_choose_the_folder(run: Path) -> None:
    own = run / "nodes" / "0"
    assert flower_app.node_folder(context({"node-dir": str(own)}, {"run-dir": "/elsewhere"})) == own
    with pytest.raises(RunError, match="no folder"):
        flower_app.node_folder(context({}, {"run-dir": str(run)}))


def test_errors_leave_as_codes(run: Path, tmp_path: Path) -> None:
    no_data = ask(Request("hello", 0), context({"node-dir": str(tmp_path)}, {}))
    assert no_data.error.code == flower_app.REFUSED and no_data.error.reason == "declined"
    where = context({"node-dir": str(run / "nodes" / "0")}, {})
    nonsense = ask(RecordDict({"header": ConfigRecord({"kind": "x"})}), where)
    assert nonsense.error.code == flower_app.REFUSED and nonsense.error.reason == "protocol"
    assert nonsense.metadata.reply_to_message_id == "m1" and nonsense.metadata.dst_node_id == 1


def test_a_bug_does_not_quote_the_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Node, request: Request, memory: object) -> Reply:
        raise KeyError("user 4711 saw film 12")

    monkeypatch.setattr(Node, "handle", fail)
    answer = ask(Request("hello", 0), context({"node-dir": str(run / "nodes" / "0")}, {}))
    assert (answer.error.code, answer.error.reason) == (flower_app.REFUSED, "failed")


@given(st.binary(max_size=5000), st.binary(min_size=1, max_size=50))
def test_secrets_survive_the_way_to_the_supernode_and_back(data: bytes, other: bytes) -> None:
    where = context({}, {})
    memory = StateMemory(where.state)
    assert memory.get() is None
    memory.put(other)
    memory.put(data)
    back = context_from_proto(context_to_proto(where))
    assert StateMemory(back.state).get() == data
    StateMemory(back.state).clear()
    StateMemory(back.state).clear()
    assert StateMemory(back.state).get() is None
    assert context_to_proto(back) == context_to_proto(context({}, {}))


def test_secrets_leave_the_rest_of_the_state_alone() -> None:
    where = context({}, {})
    where.state["other"] = ConfigRecord({"kept": 1})
    memory = StateMemory(where.state)
    memory.put(b"secret")
    memory.clear()
    assert dict(where.state) == {"other": ConfigRecord({"kept": 1})}


def test_the_short_stages_need_nothing_that_trains() -> None:
    heavy = ("torch", "numba", "scipy", "fedrec.evaluation", "fedrec_client.node.node")
    script = (
        f"import sys, fedrec_client.node.flower_app; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


class Messages:
    """Every request as a Flower message to a node that is opened anew and has nothing but its context.

    Attributes:
        states: what a SuperNode holds of each node between two messages.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.contexts = {
            str(k): context({"node-dir": str(folder / "nodes" / str(k))}, {}) for k in range(nodes)
        }
        self.held: list[tuple[str, bool]] = []

    def nodes(self) -> list[str]:
        return sorted(self.contexts)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        return {node: self._send(node, request) for node, request in requests.items()}

    def _send(self, node: str, request: Request) -> Reply | Failure:
        flower_app._open.cache_clear()
        flower_app._open_party.cache_clear()
        where = context_from_proto(context_to_proto(self.contexts[node]))
        answer = ask(request, where)
        self.contexts[node] = where
        self.held.append((request.kind, bool(len(where.state))))
        return Failure(str(answer.error.reason)) if answer.has_error() else parse_records(answer.content)


def test_a_secure_run_over_messages_is_the_one_in_process_and_leaves_no_secret(tmp_path: Path) -> None:
    rounds = RoundSettings(rounds=2, min_nodes=3)
    here, sent = (
        flower_helpers.lay_out(tmp_path / name, 3, rounds, secure=True) for name in ("here", "sent")
    )
    messages = Messages(sent, 3)
    outcome = open_coordinator(sent / "coordinator", messages).run()
    baseline = run_in_process(here)
    assert outcome.finished
    for name, values in baseline.shared.items():
        np.testing.assert_allclose(outcome.shared[name], values, rtol=1e-4, atol=1e-5)
    kinds = {kind for kind, _ in messages.held}
    assert {"advertise", "share", "train", "confirm", "unmask"} <= kinds
    held = {kind for kind, held in messages.held if held}
    assert {"advertise", "share", "train", "confirm"} <= held and not held & {"unmask", "hello", "persist"}
    assert not any(len(where.state) for where in messages.contexts.values())


def test_a_restarted_supernode_has_forgotten_and_says_so(tmp_path: Path) -> None:
    folder = flower_helpers.lay_out(tmp_path / "run", 3, RoundSettings(rounds=1, min_nodes=3), secure=True)
    where = context({"node-dir": str(folder / "nodes" / "0")}, {})
    answer = ask(Request("unmask", 1, "refit", {}, {}), where)
    assert answer.error.code == flower_app.REFUSED and answer.error.reason == "secagg-forgotten"
    assert not len(where.state)


def test_small_messages_are_one_record_and_large_ones_are_arrays(run: Path) -> None:
    small = record_maker(Request("hello", 0, "tuning", {"a": np.arange(3), "b": np.array(True)}, {"n": 1}))()
    large = record_maker(Request("hello", 0, "tuning", {"a": np.zeros(1 << 20)}))()
    assert set(small) == {"header"} and isinstance(large["arrays"], ArrayRecord)
    for content, size in ((small, 3), (large, 1 << 20)):
        request = flower_app.parse_records(content)
        assert request.kind == "hello" and request.arrays["a"].shape == (size,)
    got = flower_app.parse_records(small)
    assert got.arrays["b"].dtype == bool and got.arrays["b"].shape == () and got.meta["n"] == 1


def test_bytes_that_are_no_arrays_are_refused(run: Path) -> None:
    where = context({"node-dir": str(run / "nodes" / "0")}, {})
    for packed in (b"", b"nonsense", b"\xff" * 64):
        header = {"kind": "hello", "round": 0, "phase": "tuning", "packed": packed}
        answer = ask(RecordDict({"header": ConfigRecord(header)}), where)
        assert answer.error.code == flower_app.REFUSED and answer.error.reason == "protocol"
