"""Private rounds through node and coordinator: charged, then released; repeated word for word; refused when false."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_run
from secagg_helpers import PLAIN

import fedrec_server.rounds.coordinator as coordinator_module
from fedrec.core.errors import BudgetExhausted, PrivacyRefused, RoundAbandoned
from fedrec.core.interactions import UserBatch
from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.ledger import Account, Ledger
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import AdaptiveClip, InteractionPlan, PrivacySettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.closed_form.ease import EaseConfig
from fedrec.recommenders.closed_form.ials import IalsConfig
from fedrec.recommenders.closed_form.popularity import PopularityConfig
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import ModelConfig, build
from fedrec.rounds.build import chain_of
from fedrec.rounds.chain import NodeRound
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node, write_node
from fedrec_server.rounds._checkpoints import Checkpoints
from fedrec_server.rounds.coordinator import Outcome, open_coordinator
from fedrec_server.rounds.task import Task

MF = MfConfig(embedding_size=4, learning_rate=0.1)
EVALUATION = EvaluationSettings(bootstrap=20)
ROUNDS = 3


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class Nodes:
    """In-process nodes whose replies are kept, and some of which may stay away."""

    def __init__(self, folder: Path, away: frozenset[str] = frozenset()) -> None:
        self._nodes = {path.name: open_node(path) for path in sorted((folder / "nodes").iterdir())}
        self._away = away
        self.sent: list[tuple[str, int, bytes]] = []

    def nodes(self) -> list[str]:
        return sorted(self._nodes)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        answers: dict[str, Reply | Failure] = {}
        for node, request in requests.items():
            if request.kind == "train" and node in self._away:
                answers[node] = Failure("away")
                continue
            reply = self._nodes[node].handle(request)
            if request.kind == "train":
                self.sent.append((node, request.round, reply.arrays["update"].tobytes()))
            answers[node] = reply
        return answers


def prepare(
    folder: Path,
    split: Split,
    model: ModelConfig = MF,
    *,
    nodes: int = 2,
    rate: float = 1.0,
    metrics: Any = "none",
    limit: float | None = None,
    **privacy: Any,
) -> Path:
    recommender = build(model)
    rounds = recommender.fixed_rounds or ROUNDS
    n_items, n_users = split.train.n_items, split.train.n_users
    chosen: dict[str, Any] = {"unit": "user", "epsilon": 5.0, "force": True, "metrics": metrics} | privacy
    plan = make_plan(
        PrivacySettings(**chosen),
        population=chosen.get("population", n_users),
        rounds=rounds,
        schedule=recommender.noise_schedule(rounds),
        parameters=max(recommender.layout(n_items, r).size for r in range(1, rounds + 1)),
        sampling_rate=rate,
    )
    terms = PrivacyTerms(plan=plan, run="run", dataset="planted", limit_epsilon=limit or plan.target_epsilon)
    return write_run(
        folder,
        split,
        model,
        nodes=nodes,
        settings=NodeSettings(seed=5, sampling_rate=rate),
        rounds=RoundSettings(rounds=rounds, max_abandoned=1, min_reply_fraction=0.0),
        evaluation=EVALUATION,
        privacy=terms,
    )


def run(folder: Path, exchange: Nodes | None = None) -> Outcome:
    return open_coordinator(folder / "coordinator", exchange or Nodes(folder)).run()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "coordinator" / "rounds.jsonl").read_text().splitlines()]


def first_request(folder: Path, split: Split, **meta: Any) -> Request:
    shared = build(MF).init_shared(split.train.n_items, 5)
    return Request("train", 1, "refit", shared, meta)


# What is released -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "privacy"),
    [
        (MF, {}),
        (MF, {"adaptive": AdaptiveClip(count_noise_multiplier=50.0)}),
        (MF, {"trust": "distributed"}),
        (MF, {"trust": "local"}),
        (MF, {"unit": "interaction", "interaction": InteractionPlan(local_steps=1, max_interactions=20)}),
        (PopularityConfig(), {}),
    ],
    ids=["central", "adaptive", "distributed", "local", "interaction", "popularity"],
)
def test_every_mode_runs_to_its_end_and_books_every_round(
    tmp_path: Path, split: Split, model: ModelConfig, privacy: dict[str, Any]
) -> None:
    folder = prepare(tmp_path, split, model, **privacy)
    outcome = run(folder)
    rounds = build(model).fixed_rounds or ROUNDS
    assert outcome.finished and outcome.rounds == rounds
    assert outcome.result["validation"] is None, "choosing rounds would be a second, unpaid look at the data"
    assert outcome.result["test"] is None, "nothing of an evaluation leaves unless the plan says so"
    # An un-noised number of the training must not be found in what everyone may read.
    for record in records(folder):
        assert not {"loss", "mean_norm", "clipped_fraction", "validation"} & set(record)
    for book in (folder / "coordinator" / "ledger", folder / "nodes" / "0" / "ledger"):
        with Ledger.open(book, read_only=True) as ledger:
            (account,) = ledger.accounts()
            assert set(ledger.charged(account, "run")) == set(range(1, rounds + 1))
            assert ledger.spent(account).epsilon <= 5.0


def test_released_sum_is_the_clipped_sum_plus_the_planned_noise(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, PopularityConfig(), clip_norm=2.0)
    released = run(folder).shared["count"].astype(np.float64)
    part = split.learnable("refit")
    batch = split.batch(part)
    scale = np.minimum(1.0, 2.0 / np.sqrt(np.maximum(batch.counts, 1)))
    clean = np.bincount(batch.item, scale[batch.row], minlength=part.n_items)
    std = records(folder)[0]["noise_std"]
    deviation = (released - clean) / std
    assert std == pytest.approx(2.0 * _task(folder).privacy.plan.noise_multipliers[0])  # type: ignore[union-attr]
    assert abs(deviation.mean()) < 4 / np.sqrt(len(deviation))
    assert 0.7 < deviation.std() < 1.3


@pytest.mark.parametrize("model", [EaseConfig(), IalsConfig(embedding_size=4), PopularityConfig(), MF])
def test_repeated_items_do_not_carry_a_user_over_the_clip_norm(model: ModelConfig, split: Split) -> None:
    recommender = build(model)
    plan = make_plan(
        PrivacySettings(unit="user", epsilon=1.0, force=True, clip_norm=0.01, noise_seed=1),
        population=1000,
        rounds=1,
        schedule=(1.0,),
        parameters=recommender.layout(split.train.n_items).size,
    )
    key, n_items = np.array([7]), split.train.n_items
    item = np.array([3, 5, 3, 3, 3, 5, 3])
    batch = UserBatch(key, np.array([0, 7]), item, np.ones(7, dtype=np.float32))
    shared = recommender.init_shared(n_items, 5)
    chain, whole = chain_of(NodeSettings(seed=5), plan, gradient=False), recommender.layout(n_items)
    stages = NodeRound(chain, chain.context(whole, n_items, 1, {}, NoiseSource(1)), whole)
    local, seed = recommender.init_local(key, 5), RoundSeed(5, 1)
    total, _ = chain.training.train(recommender, shared, local, chain.histories(batch), seed, stages)
    arrays, _ = stages.write(total, 1, 1)
    assert np.linalg.norm(arrays["update"]) == pytest.approx(0.01, rel=1e-9)


def test_denominator_is_fixed_and_an_empty_cohort_is_noised_too(tmp_path: Path, split: Split) -> None:
    # Seeded coins, so that it is known that no one takes part.
    folder = prepare(tmp_path, split, rate=1e-3, epsilon=2.0, noise_seed=1, population=100_000)
    exchange = Nodes(folder)
    outcome = run(folder, exchange)
    before = build(MF).init_shared(split.train.n_items, 5)["item_table"]
    assert all(not np.frombuffer(sent).any() for _, _, sent in exchange.sent), "no one took part"
    assert not np.array_equal(outcome.shared["item_table"], before), "the release must look like any other"
    assert {record["users"] for record in records(folder)} == {100.0}


def test_cohort_coins_are_secret(tmp_path: Path, split: Split) -> None:
    """Two nodes with the same seed and the same users must not draw the same cohort."""
    sent = []
    for name in ("a", "b"):
        exchange = Nodes(prepare(tmp_path / name, split, rate=0.5, nodes=1))
        exchange.exchange({"0": first_request(tmp_path / name, split)}, 1.0)
        sent.append(exchange.sent[0][2])
    assert sent[0] != sent[1]


def test_seeded_noise_repeats_and_says_so(tmp_path: Path, split: Split) -> None:
    models = []
    for name in ("a", "b"):
        folder = prepare(tmp_path / name, split, noise_seed=3)
        models.append(run(folder).shared["item_table"])
        assert "NOT PRIVATE" in _task(folder).privacy.plan.warnings()[0]  # type: ignore[union-attr]
    np.testing.assert_array_equal(models[0], models[1])


# What is refused ------------------------------------------------------------------------------------------


def test_too_few_shares_are_never_released(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, trust="distributed", nodes=4)
    before = build(MF).init_shared(split.train.n_items, 5)
    exchange = Nodes(folder, away=frozenset({"1", "2"}))
    with pytest.raises(RoundAbandoned, match="nothing was released"):
        run(folder, exchange)
    assert not (folder / "coordinator" / "staged.safetensors").exists()
    # Once the others are back the same bytes of the first nodes count, and the round goes through.
    back = Nodes(folder)
    outcome = run(folder, back)
    assert outcome.finished
    assert {s for s in exchange.sent if s[1] == 1} <= {s for s in back.sent if s[1] == 1}
    assert not np.array_equal(outcome.shared["item_table"], before["item_table"])


def test_metrics_stay_on_the_nodes_unless_the_plan_releases_them(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)
    outcome = run(folder)
    assert outcome.finished and outcome.result["test"] is None
    for number in (ROUNDS, ROUNDS + 1):
        with pytest.raises(PrivacyRefused, match="metrics are not part of the privacy plan"):
            open_node(folder / "nodes" / "0").handle(Request("evaluate", number, "refit", outcome.shared))


def test_budget_of_earlier_runs_counts(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)
    run(folder)
    path = folder / "nodes" / "0" / "node.json"
    again = json.loads(path.read_text())
    again["privacy"]["run"] = "another"
    path.write_text(json.dumps(again))
    with pytest.raises(BudgetExhausted):
        open_node(folder / "nodes" / "0").handle(first_request(folder, split))


def test_a_user_who_joins_does_not_give_the_others_a_new_budget(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)
    run(folder)
    node = folder / "nodes" / "0"
    config = json.loads((node / "node.json").read_text())
    terms = PrivacyTerms.model_validate(config["privacy"] | {"run": "another"})
    # The same node now hosts everyone.
    write_node(node, split, MF, NodeSettings(seed=5), EVALUATION, privacy=terms, aggregation=PLAIN)
    with pytest.raises(BudgetExhausted):
        open_node(node).handle(first_request(folder, split))


def test_a_node_without_a_folder_has_no_ledger_and_is_refused(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, nodes=1)
    config = json.loads((folder / "nodes" / "0" / "node.json").read_text())
    terms = PrivacyTerms.model_validate(config["privacy"])
    from fedrec_client.node.local_state import LocalStore

    with pytest.raises(PrivacyRefused, match="has no ledger"):
        Node(split, MF, NodeSettings(seed=5), EVALUATION, LocalStore(None), None, terms, aggregation=PLAIN)


@pytest.mark.parametrize("round_", [0, ROUNDS + 1])
def test_rounds_outside_the_plan_are_refused(tmp_path: Path, split: Split, round_: int) -> None:
    folder = prepare(tmp_path, split)
    request = replace(first_request(folder, split), round=round_)
    with pytest.raises(Exception, match=f"the plan has {ROUNDS}"):
        open_node(folder / "nodes" / "0").handle(request)


def test_an_update_that_is_too_long_costs_its_node_only(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)

    class Boastful(Nodes):
        def exchange(
            self, requests: Mapping[str, Request], deadline_seconds: float
        ) -> dict[str, Reply | Failure]:
            answers = super().exchange(requests, deadline_seconds)
            reply = answers.get("1")
            if isinstance(reply, Reply) and reply.kind == "train":
                arrays: State = {"update": reply.arrays["update"] + 1e3}
                answers["1"] = replace(reply, arrays=arrays)
            return answers

    run(folder, Boastful(folder))
    assert all("expected at most" in record["failures"]["1"] for record in records(folder))


def test_a_delta_that_covers_ever_taking_part_is_refused(tmp_path: Path, split: Split) -> None:
    with pytest.raises(PrivacyRefused, match="probability of ever taking part"):
        prepare(tmp_path, split, rate=1e-3)


# Crashes --------------------------------------------------------------------------------------------------


def test_a_node_sends_the_same_bytes_again_and_pays_once(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split, trust="distributed")
    request = first_request(folder, split)
    first = open_node(folder / "nodes" / "0").handle(request)
    again = open_node(folder / "nodes" / "0").handle(request)
    assert first.arrays["update"].tobytes() == again.arrays["update"].tobytes()
    other = replace(request, arrays={name: values + 1 for name, values in request.arrays.items()})
    with pytest.raises(PrivacyRefused, match="already answered for another model"):
        open_node(folder / "nodes" / "0").handle(other)


@pytest.mark.parametrize("when", ["before charge", "after charge", "before record"])
def test_a_killed_coordinator_never_draws_noise_twice_for_a_charged_round(
    tmp_path: Path, split: Split, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path, split)
    private = coordinator_module.Charges
    real_charge, real_append = private.charge, Checkpoints._append
    staged: list[bytes] = []

    def charge(self: Any, round_: int, digest: str) -> None:
        if round_ == 2 and when == "before charge":
            raise Killed
        real_charge(self, round_, digest)
        if round_ == 2:
            staged.append((folder / "coordinator" / "staged.safetensors").read_bytes())
            if when == "after charge":
                raise Killed

    def append(self: Any, record: dict[str, Any]) -> None:
        if record["round"] == 2 and when == "before record":
            raise Killed
        real_append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(private, "charge", charge)
        patch.setattr(Checkpoints, "_append", append)
        with pytest.raises(Killed):
            run(folder)
    resumed = open_coordinator(folder / "coordinator", Nodes(folder))
    if when == "before charge":
        assert resumed._progress.round == 1, "no one has seen the second round: it is done anew"
    else:
        assert resumed._progress.round == 2
        assert (folder / "coordinator" / "checkpoint.safetensors").read_bytes() == staged[0]
    assert resumed.run().finished
    assert [record["round"] for record in records(folder)] == [1, 2, 3]
    with Ledger.open(folder / "coordinator" / "ledger", read_only=True) as ledger:
        account = Account("each of the users of the federation", "planted")
        assert sorted(ledger.charged(account, "run")) == [1, 2, 3]


def test_half_a_staged_model_is_forgotten(tmp_path: Path, split: Split) -> None:
    folder = prepare(tmp_path, split)
    run(folder)
    staged = folder / "coordinator" / "staged.safetensors"
    staged.write_bytes((folder / "coordinator" / "checkpoint.safetensors").read_bytes()[:100])
    open_coordinator(folder / "coordinator", Nodes(folder))
    assert not staged.exists()


def _task(folder: Path) -> Task:
    return Task.read(folder / "coordinator")
