"""The node's side of Flower: messages in, messages out; errors in one line, nothing of the data in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flower_helpers
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedrec.errors import RunError
from fedrec.learning.protocol import Reply, Request
from fedrec.learning.settings import RoundSettings
from fedrec.models.registry import build
from fedrec_client import flower_app
from fedrec_client.node import Node, open_node
from fedrec_server.flower_app import parse_records, record_maker


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
    return Request("train", 1, "final", build(flower_helpers.MODEL).init_shared(n_items, 5), meta)


def test_an_answer_is_that_of_the_node_itself(run: Path) -> None:
    request = train_request(run)
    answer = ask(request, context({"partition-id": 0, "num-partitions": 2}, {"run-dir": str(run)}))
    got, expected = parse_records(answer.content), open_node(run / "nodes" / "0").handle(request)
    assert isinstance(got, Reply)
    assert (got.kind, got.round, got.phase, got.meta) == ("train", 1, "final", expected.meta)
    np.testing.assert_array_equal(got.arrays["update"], expected.arrays["update"])


def test_local_state_is_written_even_if_the_coordinator_wants_none(run: Path) -> None:
    where = context({"partition-id": 1, "num-partitions": 2}, {"run-dir": str(run)})
    assert ask(train_request(run, persist=False), where).has_content()
    assert list((run / "nodes" / "1" / "local").glob("final-*"))


def test_in_a_deployment_the_coordinator_does_not_choose_the_folder(run: Path) -> None:
    own = run / "nodes" / "0"
    assert flower_app.node_folder(context({"node-dir": str(own)}, {"run-dir": "/elsewhere"})) == own
    with pytest.raises(RunError, match="node-dir"):
        flower_app.node_folder(context({}, {"run-dir": str(run)}))


def test_errors_of_ours_are_told_in_one_line(run: Path, tmp_path: Path) -> None:
    no_data = ask(Request("hello", 0), context({"node-dir": str(tmp_path)}, {}))
    assert no_data.error.code == flower_app.REFUSED and "prepare the run first" in str(no_data.error.reason)
    where = context({"node-dir": str(run / "nodes" / "0")}, {})
    nonsense = ask(RecordDict({"header": ConfigRecord({"kind": "x"})}), where)
    assert nonsense.error.code == flower_app.REFUSED and "records" in str(nonsense.error.reason)
    assert nonsense.metadata.reply_to_message_id == "m1" and nonsense.metadata.dst_node_id == 1


def test_a_bug_does_not_quote_the_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Node, request: Request) -> Reply:
        raise KeyError("user 4711 saw film 12")

    monkeypatch.setattr(Node, "handle", fail)
    answer = ask(Request("hello", 0), context({"node-dir": str(run / "nodes" / "0")}, {}))
    assert answer.error.code == flower_app.BROKEN
    assert "KeyError" in str(answer.error.reason) and "4711" not in str(answer.error.reason)
