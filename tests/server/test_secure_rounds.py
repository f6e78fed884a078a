"""Rounds under secure aggregation: the model of a run in the clear, though nodes vanish and coordinators die."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_helpers import lay_out

from fedrec.core.errors import AggregationRefused, FedrecError, RoundAbandoned
from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.refusal_reasons import Reason
from fedrec.core.stage import ANNOUNCED
from fedrec.rounds.compression import Compression
from fedrec.rounds.settings import RoundSettings
from fedrec.rounds.shards import Rows, read_rows, spell_rows
from fedrec_client.node._memory import HeldMemory
from fedrec_client.node._party import open_party
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node
from fedrec_server.rounds.coordinator import Outcome, open_coordinator

ROWS = ANNOUNCED + Rows.name
ROUNDS = RoundSettings(rounds=3, min_nodes=3, deadline_seconds=5, max_abandoned=2)
#: Whether a node is silent: (node, request) -> bool.
Silent = Callable[[str, Request], bool]


class Nodes:
    """Nodes of this process, some of them silent at times."""

    def __init__(self, folder: Path, silent: Silent = lambda node, request: False, **options: Any) -> None:
        self.nodes_here: dict[str, Node] = {
            path.name: open_node(path, **options) for path in sorted((folder / "nodes").iterdir())
        }
        self.silent = silent
        self.seen: list[tuple[str, Request, Reply | Failure]] = []

    def nodes(self) -> list[str]:
        return sorted(self.nodes_here)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        out = {node: self._serve(node, request) for node, request in requests.items()}
        self.seen += [(node, requests[node], reply) for node, reply in out.items()]
        return out

    def _serve(self, node: str, request: Request) -> Reply | Failure:
        if self.silent(node, request):
            return Failure("no answer")
        try:
            return self.nodes_here[node].handle(request)
        except FedrecError as error:
            return Failure(str(error))


def run(folder: Path, nodes: Nodes, **options: Any) -> Outcome:
    return open_coordinator(folder / "coordinator", nodes, **options).run()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "coordinator" / "rounds.jsonl").read_text().splitlines()]


def test_a_secure_run_ends_with_the_model_of_a_run_in_the_clear(tmp_path: Path) -> None:
    clear, secure = (
        lay_out(tmp_path / "clear", 4, ROUNDS),
        lay_out(tmp_path / "secure", 4, ROUNDS, secure=True),
    )
    nodes = Nodes(secure)
    one, other = run(clear, Nodes(clear)), run(secure, nodes)
    for name, values in one.shared.items():
        np.testing.assert_allclose(other.shared[name], values, atol=1e-5)
    full = one.result["test"]["metrics"]["all"]["full/ndcg@10"]
    assert other.result["test"]["metrics"]["all"]["full/ndcg@10"] == pytest.approx(full, abs=1e-3)
    assert all(record["secagg"]["nodes"] == 4 for record in records(secure))
    # Besides saying hello nodes sent protocol messages only: no update, no count, no metric.
    hidden = {"hello", "advertise", "share", "train", "evaluate", "confirm", "unmask", "persist"}
    parts = {"advert", "shares", "masked", "signature", "opened"}
    for _, request, reply in nodes.seen:
        assert isinstance(reply, Reply) and request.kind in hidden
        assert set(reply.arrays) <= parts
        assert not reply.meta or request.kind == "hello"


def test_the_mode_without_cryptography_computes_the_same_integers(tmp_path: Path) -> None:
    full, quick = (lay_out(tmp_path / name, 4, ROUNDS, secure=True) for name in ("full", "quick"))
    one = run(full, Nodes(full))
    other = run(quick, Nodes(quick, simulated="integers"), integers=True)
    for name, values in one.shared.items():
        np.testing.assert_array_equal(other.shared[name], values)
    assert one.result["test"] == other.result["test"]


def test_a_sum_waits_until_as_many_nodes_are_there_as_it_needs(tmp_path: Path) -> None:
    """Two of five answer the first hellos; a sum of two is refused, so asking for one spends a try for nothing."""
    folder = lay_out(tmp_path, 5, ROUNDS.model_copy(update={"min_nodes": 1}), secure=True)
    hellos: Counter[str] = Counter()

    def late(node: str, request: Request) -> bool:
        hellos[node] += request.kind == "hello"
        return request.kind == "hello" and node >= "2" and hellos[node] <= ROUNDS.max_abandoned + 1

    assert run(folder, Nodes(folder, late)).finished
    assert [record["nodes"] for record in records(folder)] == [5] * ROUNDS.rounds
    assert not any("abandoned" in record for record in records(folder))


@pytest.mark.parametrize("stage", ["advertise", "share", "train", "confirm", "unmask"])
def test_a_node_that_vanishes_at_any_stage_costs_its_own_update_only(tmp_path: Path, stage: str) -> None:
    folder = lay_out(tmp_path, 5, ROUNDS, secure=True)
    nodes = Nodes(folder, lambda node, q: node == "1" and q.kind == stage and q.round == 2)
    assert run(folder, nodes).finished
    second = records(folder)[1]
    assert second["round"] == 2
    late = stage in ("confirm", "unmask")
    assert second["nodes"] == (5 if late else 4)
    assert ("1" in second["failures"]) != late


def test_an_attempt_that_fails_before_shares_are_given_away_is_tried_again(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 4, ROUNDS, secure=True)
    asked: list[int] = []

    def silent(node: str, request: Request) -> bool:
        if request.kind == "confirm" and request.round == 2:
            asked.append(1)
        return len(asked) in range(1, 5) and request.kind == "confirm"

    baseline = lay_out(tmp_path / "baseline", 4, ROUNDS, secure=True)
    outcome = run(folder, Nodes(folder, silent))
    assert [record.get("abandoned", False) for record in records(folder)] == [False, True, False, False]
    for name, values in run(baseline, Nodes(baseline)).shared.items():
        np.testing.assert_array_equal(outcome.shared[name], values)


def test_a_round_whose_shares_were_given_away_in_vain_is_lost_and_not_asked_again(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 4, ROUNDS, secure=True)
    nodes = Nodes(folder, lambda node, q: q.kind == "unmask" and q.round == 2 and node != "0")
    assert run(folder, nodes).finished
    assert [(record["round"], record.get("lost", False)) for record in records(folder)] == [
        (1, False),
        (2, True),
        (3, False),
    ]
    # The node that did give its shares away will not be talked into a second sum.
    again = next(q for node, q, _ in nodes.seen if q.kind == "advertise" and q.round == 2)
    party = open_party(folder / "nodes" / "0")
    assert party is not None
    again.meta["secagg/attempt"] = 999
    with pytest.raises(AggregationRefused) as refused:
        party.handle(again, HeldMemory())
    assert refused.value.reason == Reason.REPLAY


def test_nothing_secret_is_left_on_disk_or_in_memory(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 4, ROUNDS, secure=True)
    nodes = Nodes(folder)
    held: list[bytes] = []
    for node in nodes.nodes_here.values():
        memory = node._memory
        put = memory.put
        memory.put = lambda data, put=put: (held.append(data), put(data))[1]  # type: ignore[method-assign,misc]
    run(folder, nodes)
    secrets = {
        json.loads(data)[name]
        for data in held
        for name in ("c_key", "s_key", "seed")
        if json.loads(data)[name]
    }
    assert len(secrets) > 40
    on_disk = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for secret in secrets:
        assert secret.encode() not in on_disk and bytes.fromhex(secret) not in on_disk
    assert all(node._memory.get() is None for node in nodes.nodes_here.values())


def test_a_coordinator_killed_at_any_moment_ends_with_the_same_model(tmp_path: Path) -> None:
    baseline = lay_out(tmp_path / "baseline", 3, ROUNDS, secure=True)
    expected = run(baseline, Nodes(baseline)).shared
    folder = lay_out(tmp_path / "run", 3, ROUNDS, secure=True)

    class KilledError(Exception):
        pass

    nodes, budget = Nodes(folder), 0

    def dying(requests: Mapping[str, Request], deadline_seconds: float) -> dict[str, Reply | Failure]:
        nonlocal budget
        budget -= 1
        # In the middle of an unmasking the sum would be lost, which another test looks at.
        if budget < 0 and {q.kind for q in requests.values()} != {"unmask"}:
            raise KilledError
        return exchange(requests, deadline_seconds)

    exchange, nodes.exchange = nodes.exchange, dying  # type: ignore[method-assign]
    for start in range(3, 60, 2):
        budget = start % 7 + 3
        try:
            outcome = open_coordinator(folder / "coordinator", nodes).run()
            break
        except KilledError:
            continue
    for name, values in expected.items():
        np.testing.assert_array_equal(outcome.shared[name], values)


def test_too_few_nodes_end_the_run_with_one_line(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 4, ROUNDS, secure=True)
    with pytest.raises(RoundAbandoned, match="cohort of 2 devices"):
        run(folder, Nodes(folder, lambda node, q: node in "01" and q.kind == "advertise"))


@pytest.mark.parametrize("trust", ["central", "distributed"])
def test_private_rounds_keep_their_plan_under_secure_aggregation(tmp_path: Path, trust: Any) -> None:
    clear = lay_out(tmp_path / "clear", 4, ROUNDS, trust=trust)
    secure = lay_out(tmp_path / "secure", 4, ROUNDS, trust=trust, secure=True)
    one, other = run(clear, Nodes(clear)), run(secure, Nodes(secure))
    for name, values in one.shared.items():
        if trust == "distributed":
            np.testing.assert_array_equal(other.shared[name], values)
        else:
            np.testing.assert_allclose(other.shared[name], values, atol=1e-4)


def test_memory_that_an_older_process_left_behind_answers_no_stage_again(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 4, ROUNDS, secure=True)
    nodes, stale = Nodes(folder), dict[str, bytes]()
    memory = nodes.nodes_here["0"]._memory

    def watch(node: str, request: Request) -> bool:
        data = memory.get()
        if node == "0" and data is not None and request.round == 1:
            stale.setdefault(request.kind, data)
        return False

    nodes.silent = watch
    run(folder, nodes)
    party = open_party(folder / "nodes" / "0")
    assert party is not None and set(stale) >= {"share", "train", "confirm", "unmask"}
    for kind in ("share", "confirm", "unmask"):
        request = next(q for node, q, _ in nodes.seen if node == "0" and q.kind == kind and q.round == 1)
        kept = HeldMemory()
        kept.put(stale[kind])
        with pytest.raises(AggregationRefused) as refused:
            party.handle(request, kept)
        assert refused.value.reason == Reason.REPLAY and kept.get() is None


@pytest.mark.parametrize("what", ["model", "rows"])
def test_a_server_that_asks_one_node_something_else_is_refused(tmp_path: Path, what: str) -> None:
    """With another model, or other rows named to send, one node's update could be read out of the sum."""
    few = Compression(rows=0.5) if what == "rows" else None
    folder = lay_out(tmp_path, 4, ROUNDS, secure=True, compression=few)
    nodes = Nodes(folder)
    refused: list[AggregationRefused] = []
    exchange = nodes.exchange

    def unequal(requests: Mapping[str, Request], deadline_seconds: float) -> dict[str, Reply | Failure]:
        if any(q.kind == "train" for q in requests.values()):
            honest = requests["0"]
            if what == "rows":
                others = np.setdiff1d(np.arange(60), read_rows(honest.meta[ROWS], 60, 0.5))
                changed = replace(honest, meta=honest.meta | {ROWS: spell_rows(others, 60)})
            else:
                other = {name: values + 1 for name, values in honest.arrays.items() if "/" not in name}
                changed = replace(honest, arrays=honest.arrays | other)
            with pytest.raises(AggregationRefused) as found:
                nodes.nodes_here["0"].handle(changed)
            refused.append(found.value)
        return exchange(requests, deadline_seconds)

    nodes.exchange = unequal  # type: ignore[method-assign]
    assert run(folder, nodes).finished
    assert {error.reason for error in refused} == {Reason.MODEL}
    assert all("holds no secrets" in record["failures"]["0"] for record in records(folder))


def test_sealed_replies_are_read_by_the_coordinator_and_by_no_one_on_the_way(tmp_path: Path) -> None:
    clear = lay_out(tmp_path / "clear", 3, ROUNDS)
    sealed = lay_out(tmp_path / "sealed", 3, ROUNDS, sealed=True)
    nodes = Nodes(sealed)
    assert (sealed / "coordinator" / "sealed.key").stat().st_mode & 0o777 == 0o600
    one, other = run(clear, Nodes(clear)), run(sealed, nodes)
    for name, values in one.shared.items():
        np.testing.assert_array_equal(other.shared[name], values)
    assert one.result["test"] == other.result["test"]
    for _, request, reply in nodes.seen:
        if request.kind in ("train", "evaluate"):
            assert isinstance(reply, Reply) and set(reply.arrays) == {"sealed"} and not reply.meta
    # Replies that were recorded on the way cannot be opened any more.
    assert not (sealed / "coordinator" / "sealed.key").exists()
    again = open_coordinator(sealed / "coordinator", nodes).run()
    assert again.finished and again.result == other.result


def test_a_sealed_reply_of_another_node_or_round_is_that_nodes_failure(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 3, ROUNDS.model_copy(update={"min_nodes": 2}), sealed=True)
    nodes = Nodes(folder)
    exchange, first = nodes.exchange, dict[str, Reply | Failure]()

    def mixed_up(requests: Mapping[str, Request], deadline_seconds: float) -> dict[str, Reply | Failure]:
        replies = exchange(requests, deadline_seconds)
        if any(q.kind == "train" and q.round == 1 for q in requests.values()):
            first.update(replies)
            replies["0"] = replies["1"]
        if any(q.kind == "train" and q.round == 2 for q in requests.values()):
            replies["2"] = replace(first["2"], round=2)  # type: ignore[type-var]
        return replies

    nodes.exchange = mixed_up  # type: ignore[method-assign]
    assert run(folder, nodes).finished
    failures = [record["failures"] for record in records(folder)]
    assert [set(each) for each in failures] == [{"0"}, {"2"}, set()]
    assert all("does not open" in why for each in failures for why in each.values())
