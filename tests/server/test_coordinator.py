"""Rounds survive bad nodes, too few nodes and a killed coordinator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import write_run
from secagg_helpers import PLAIN

from fedrec.core.errors import FederationError, RoundAbandoned
from fedrec.core.messages import Failure, Reply, Request
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec_client.node.node_folder import open_node, write_node
from fedrec_server.rounds.coordinator import Outcome, open_coordinator

MODEL = MfConfig(embedding_size=4, learning_rate=0.1)
EVALUATION = EvaluationSettings(bootstrap=20)
Spoil = Callable[[Request, Reply], Reply | Failure]


class FaultyExchange:
    """In-process nodes; `spoil` may replace what one of them answers."""

    def __init__(self, folder: Path, spoil: Mapping[str, Spoil] | None = None) -> None:
        self._nodes = {path.name: open_node(path) for path in sorted((folder / "nodes").iterdir())}
        self._spoil = spoil or {}
        self.trained: list[int] = []

    def nodes(self) -> list[str]:
        return sorted(self._nodes)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        answers: dict[str, Reply | Failure] = {}
        for node, request in requests.items():
            if request.kind == "train" and node == "0":
                self.trained.append(request.round)
            reply = self._nodes[node].handle(request)
            answers[node] = self._spoil[node](request, reply) if node in self._spoil else reply
        return answers


def prepare(
    folder: Path,
    split: Split,
    nodes: int = 3,
    rounds: RoundSettings | None = None,
    clip_norm: float | None = 2.0,
) -> Path:
    settings = NodeSettings(seed=5, clip_norm=clip_norm, sampling_rate=0.7)
    return write_run(
        folder,
        split,
        MODEL,
        nodes=nodes,
        settings=settings,
        rounds=rounds,
        evaluation=EVALUATION,
    )


def run(folder: Path, exchange: FaultyExchange, **kwargs: object) -> Outcome:
    return open_coordinator(folder / "coordinator", exchange, **kwargs).run()  # type: ignore[arg-type]


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "coordinator" / "rounds.jsonl").read_text().splitlines()]


def test_selects_rounds_then_learns_from_validation_too(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)
    outcome = run(folder, FaultyExchange(folder))
    assert outcome.finished
    rows = records(folder)
    evaluated = {r["round"]: r["validation"]["full/ndcg@10"] for r in rows if r["phase"] == "tuning"}
    assert outcome.rounds == max(evaluated, key=lambda r: (evaluated[r], -r))
    assert [r["round"] for r in rows if r["phase"] == "refit"] == list(range(1, outcome.rounds + 1))
    assert outcome.result["test"] is not None


def test_sharding_does_not_change_the_model(tmp_path: Path, split: Split) -> None:
    models = []
    for nodes in (1, 3, 5):
        folder = prepare(tmp_path / str(nodes), split, nodes)
        models.append(run(folder, FaultyExchange(folder)).shared["item_table"])
    np.testing.assert_allclose(models[0], models[1], atol=1e-4)
    np.testing.assert_allclose(models[0], models[2], atol=1e-4)


def _nan(request: Request, reply: Reply) -> Reply:
    return replace(reply, arrays={"update": np.full_like(reply.arrays["update"], np.nan)})


def _shape(request: Request, reply: Reply) -> Reply:
    return replace(reply, arrays={"update": reply.arrays["update"][:-1]})


def _key(request: Request, reply: Reply) -> Reply:
    return replace(reply, arrays=reply.arrays | {"more": np.zeros(1)})


def _field(request: Request, reply: Reply) -> Reply:
    return replace(reply, meta=reply.meta | {"weight": 1.0})


def _round(request: Request, reply: Reply) -> Reply:
    return replace(reply, round=reply.round + 1)


def _weight(request: Request, reply: Reply) -> Reply:
    return replace(reply, meta=reply.meta | {"users": 10**9})


def _huge(request: Request, reply: Reply) -> Reply:
    return replace(reply, arrays={"update": reply.arrays["update"] * np.float32(1e6)})


def _silent(request: Request, reply: Reply) -> Failure:
    return Failure("no answer within 5 s")


def _text(request: Request, reply: Reply) -> Reply:
    return replace(reply, meta=reply.meta | {"loss": "low"})


@pytest.mark.parametrize("bad", [_nan, _shape, _key, _field, _round, _weight, _huge, _silent, _text])
def test_a_bad_node_costs_its_own_update_only(tmp_path: Path, split: Split, bad: Spoil) -> None:
    def spoil(request: Request, reply: Reply) -> Reply | Failure:
        return bad(request, reply) if request.kind == "train" else reply

    folder = prepare(tmp_path / "bad", split)
    outcome = run(folder, FaultyExchange(folder, {"1": spoil}))
    assert outcome.finished
    for record in records(folder):
        assert record["nodes"] == 2
        assert list(record["failures"]) == ["1"]
    absent = prepare(tmp_path / "absent", split)
    without = run(
        absent, FaultyExchange(absent, {"1": lambda q, r: r if q.kind != "train" else Failure("gone")})
    )
    np.testing.assert_array_equal(outcome.shared["item_table"], without.shared["item_table"])


def test_a_node_of_another_configuration_is_refused(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)
    other = NodeSettings(seed=6, clip_norm=2.0, sampling_rate=0.7)
    write_node(folder / "nodes" / "1", split.shard(1, 3), MODEL, other, EVALUATION, aggregation=PLAIN)
    events: list[dict[str, object]] = []
    assert run(folder, FaultyExchange(folder), on_event=events.append).finished
    assert any(
        event.get("refused") == "1" and "another configuration" in str(event["reason"]) for event in events
    )
    assert all(record["nodes"] == 2 for record in records(folder))


def test_below_the_minimum_the_round_is_abandoned_and_said_so(tmp_path: Path, split: Split) -> None:
    rounds = RoundSettings(rounds=3, min_nodes=2, max_abandoned=2, deadline_seconds=2)
    folder = prepare(tmp_path, split, rounds=rounds)
    broken = {"0": _silent_when_training, "2": _silent_when_training}
    with pytest.raises(
        RoundAbandoned, match="round 1 was abandoned 2 times: 1 valid replies, expected at least 2"
    ):
        run(folder, FaultyExchange(folder, broken))
    assert [record.get("abandoned") for record in records(folder)] == [True, True]
    assert run(folder, FaultyExchange(folder)).finished


def _silent_when_training(request: Request, reply: Reply) -> Reply | Failure:
    return Failure("no answer") if request.kind == "train" else reply


def test_too_few_nodes_end_with_one_clear_line(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, rounds=RoundSettings(rounds=1, min_nodes=4, wait_seconds=0.5))
    with pytest.raises(FederationError, match="3 nodes came within"):
        run(folder, FaultyExchange(folder))


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("checkpoint_every", [1, 2])
@pytest.mark.parametrize("when", [1, 3, 5, 6])
def test_a_killed_coordinator_ends_with_the_same_bits(
    tmp_path: Path, split: Split, when: int, checkpoint_every: int
) -> None:
    rounds = RoundSettings(rounds=5, checkpoint_every=checkpoint_every)
    calm = prepare(tmp_path / "calm", split, rounds=rounds)
    expected = run(calm, FaultyExchange(calm))
    folder, seen = prepare(tmp_path / "killed", split, rounds=rounds), 0

    def kill(request: Request, reply: Reply) -> Reply:
        nonlocal seen
        seen += request.kind == "train"
        if request.kind == "train" and seen == when:
            raise Killed
        return reply

    with pytest.raises(Killed):
        run(folder, FaultyExchange(folder, {"2": kill}))
    resumed = run(folder, FaultyExchange(folder))
    for name, values in expected.shared.items():
        np.testing.assert_array_equal(values, resumed.shared[name])
    assert resumed.result["test"] == expected.result["test"]
    assert [(r["phase"], r["round"]) for r in records(folder)] == [
        (r["phase"], r["round"]) for r in records(calm)
    ]


def test_a_stop_leaves_a_checkpoint(tmp_path: Path, split: Split) -> None:
    rounds = RoundSettings(rounds=5, checkpoint_every=3)
    calm = prepare(tmp_path / "calm", split, rounds=rounds)
    expected = run(calm, FaultyExchange(calm))
    folder = prepare(tmp_path / "stopped", split, rounds=rounds)
    stopped = run(folder, FaultyExchange(folder), stop=lambda: len(records(folder)) == 2)
    assert not stopped.finished
    assert stopped.rounds == 2
    resumed = FaultyExchange(folder)
    outcome = run(folder, resumed)
    assert resumed.trained[0] == 3
    np.testing.assert_array_equal(outcome.shared["item_table"], expected.shared["item_table"])


def test_a_node_that_misses_its_first_hello_is_asked_again(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, nodes=2, rounds=RoundSettings(rounds=1, min_nodes=2, wait_seconds=30))
    missed = 0

    def deaf(request: Request, reply: Reply) -> Reply | Failure:
        nonlocal missed
        if request.kind == "hello" and missed < 3:
            missed += 1
            return Failure("no answer")
        return reply

    assert run(folder, FaultyExchange(folder, {"1": deaf})).finished
    assert missed == 3
    assert all(record["nodes"] == 2 for record in records(folder))
