"""Metrics of a private run through real nodes and coordinators: one noised sum, charged, and nothing else of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_run
from conftest import last_out, planted
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_helpers import PLAIN, Here, enrolled

from fedrec.core.errors import AggregationAborted, ConfigError, FedrecError, PrivacyRefused
from fedrec.core.files import write_json, write_secret
from fedrec.core.interactions import Interactions
from fedrec.core.messages import Failure, Reply, Request
from fedrec.data.split import Split
from fedrec.evaluation.bounded import GRID_BITS, bounded_sums
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate
from fedrec.privacy._gaussian import gaussian_epsilon
from fedrec.privacy._releases import SkellamRelease
from fedrec.privacy._renyi import rdp, rdp_epsilon
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.metrics_release import MetricsRelease
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.noised_means import noised_means
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.closed_form.popularity import PopularityConfig
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import ModelConfig, build
from fedrec.rounds.agreement import guarded_sums
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.sealed import generate_key
from fedrec.secagg.terms import SealedTerms, Terms
from fedrec.wire.messages import encode
from fedrec_client.node._private_metrics import PrivateMetrics
from fedrec_client.node._senders import PlainSender
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import open_node
from fedrec_server.rounds._collectors import Question
from fedrec_server.rounds._make_collector import make_collector
from fedrec_server.rounds._private_metrics import noise_of
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.coordinator import Coordinator, Outcome, open_coordinator
from fedrec_server.rounds.replies import Host
from fedrec_server.rounds.task import Task

NAMES = ("full/ndcg@10", "full/hr@10")
MODEL = PopularityConfig()
MF = MfConfig(embedding_size=4, learning_rate=0.1)
EVALUATION = EvaluationSettings(bootstrap=20)
HOWS = ("plain", "sealed", "secagg")
TRUSTS = ("central", "distributed", "local")


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class Wire:
    """Nodes of a folder in this process; every reply is kept, and a node's error is a failure as on a network."""

    def __init__(self, folder: Path) -> None:
        self.open = {path.name: open_node(path) for path in sorted((folder / "nodes").iterdir())}
        self.replies: list[Reply] = []
        self.refusals: list[str] = []

    def nodes(self) -> list[str]:
        return sorted(self.open)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        return {node: self._ask(node, request) for node, request in requests.items()}

    def _ask(self, node: str, request: Request) -> Reply | Failure:
        try:
            reply = self.open[node].handle(request)
        except FedrecError as error:
            self.refusals.append(str(error))
            return Failure(str(error))
        self.replies.append(reply)
        return reply


def plan_for(trust: str, model: ModelConfig = MODEL, users: int = 120, **fields: Any) -> PrivacyPlan:
    recommender, n_items = build(model), 60
    rounds = recommender.fixed_rounds or 2
    chosen = {"unit": "user", "trust": trust, "epsilon": 5.0, "metrics": "noised", "force": True} | fields
    return make_plan(
        PrivacySettings(**chosen),
        population=users,
        rounds=rounds,
        schedule=recommender.noise_schedule(rounds),
        parameters=max(recommender.layout(n_items, r).size for r in range(1, rounds + 1)),
    )


def lay_out(
    folder: Path, how: str = "plain", trust: str = "central", model: ModelConfig = MODEL, nodes: int = 4
) -> Path:
    """A private run whose metrics are released, on planted data."""
    parts = last_out(planted())
    split = Split(parts.train.merge(parts.validation), None, parts.test)
    plan = plan_for(trust, model)
    terms = PrivacyTerms(plan=plan, run="run", dataset="planted", limit_epsilon=plan.target_epsilon)
    own, settings_ = NodeSettings(seed=5), RoundSettings(rounds=plan.rounds, min_reply_fraction=0.0)
    shards = [split.shard(k, nodes) for k in range(nodes)]
    schedule = Schedule(
        refit_rounds=plan.rounds, refit_evaluation=True, guarded=guarded_sums(build(model), terms)
    )
    secagg, identities = enrolled([shard.train.n_users for shard in shards], schedule=schedule)
    aggregation: Terms = secagg if how == "secagg" else PLAIN
    if how == "sealed":
        private, public = generate_key()
        aggregation = SealedTerms(run="run", public=public.hex())
        (folder / "coordinator").mkdir(parents=True)
        write_secret(folder / "coordinator" / "sealed.key", private)
    return write_run(
        folder,
        split,
        model,
        nodes=nodes,
        settings=own,
        rounds=settings_,
        evaluation=EVALUATION,
        privacy=terms,
        aggregation=aggregation,
        identities=identities if how == "secagg" else None,
    )


def run(folder: Path, wire: Wire | None = None) -> Outcome:
    return open_coordinator(folder / "coordinator", wire or Wire(folder)).run()


def final(plan: PrivacyPlan, shared: Mapping[str, Any], **changes: Any) -> Request:
    return replace(Request("evaluate", plan.charges, "refit", dict(shared)), **changes)


def charged(folder: Path) -> list[set[int]]:
    """Numbers charged by the coordinator and by every node."""
    found = []
    for book in [folder / "coordinator" / "ledger", *sorted((folder / "nodes").glob("*/ledger"))]:
        with Ledger.open(book, read_only=True) as ledger:
            found += [set(ledger.charged(account, "run")) for account in ledger.accounts()]
    return found


# What leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("how", HOWS)
def test_an_evaluation_lets_out_a_few_noised_numbers_and_is_charged(
    tmp_path: Path, how: str, trust: str
) -> None:
    folder = lay_out(tmp_path, how, trust)
    wire = Wire(folder)
    outcome = run(folder, wire)
    test = outcome.result["test"]
    assert set(test["metrics"]["all"]) == set(NAMES) and test["noised"] is True
    assert not {"recommended", "seen", "diversity", "lists", "n_users", "unscored_users"} & set(test)
    for reply in (reply for reply in wire.replies if reply.kind == "evaluate"):
        # K + 1 numbers, in residues and limbs of their own where they are masked; 60 items would show.
        assert sum(values.size for values in reply.arrays.values()) <= (1000 if how == "sealed" else 24)
        assert not reply.meta
    plan = Task.read(folder / "coordinator").privacy.plan  # type: ignore[union-attr]
    assert charged(folder) == [set(range(1, plan.rounds + 2))] * 5
    assert plan.epsilon() <= 5.0 and plan.epsilon(plan.rounds) < plan.epsilon()


@pytest.mark.parametrize("how", HOWS)
def test_no_pair_of_evaluations_tells_a_user_apart(tmp_path: Path, how: str) -> None:
    """The attack: evaluate everyone, then everyone but one, and models of the server's own making."""
    folder = lay_out(tmp_path, how, "distributed")
    outcome, wire = run(folder), Wire(folder)
    task = Task.read(folder / "coordinator")
    plan = task.privacy.plan  # type: ignore[union-attr]
    # It forgets the sum that it has, and counts its attempts from a number that is new.
    (folder / "coordinator" / "secagg-sum.safetensors").unlink(missing_ok=True)
    write_json(folder / "coordinator" / "secagg.json", {"attempt": 100, "given": []})
    here = Here({})
    collector = make_collector(task, wire, here, folder / "coordinator")
    places = {k: int(k) if how == "secagg" else None for k in wire.nodes()}
    hosts = {k: Host(30, k, places[k]) for k in wire.nodes()}
    without = {k: host for k, host in hosts.items() if k != "3"}
    example = {"update": np.zeros(3, dtype=np.int64)}
    others = {name: values + 1.0 for name, values in outcome.shared.items()}
    for request, who in (
        (final(plan, others), hosts),
        (final(plan, others), without),
        (final(plan, outcome.shared, phase="tuning"), hosts),
        (final(plan, outcome.shared, round=plan.rounds), without),
        (final(plan, outcome.shared, round=plan.charges + 1), without),
    ):
        wire.replies.clear()
        here.hosts = who
        try:
            answers = collector.ask(Question(request, lambda reply, users, summed: reply, example, ()))
            assert answers.values == [] and answers.nodes == 0
        except AggregationAborted as error:
            assert not error.revealed
        assert not [reply for reply in wire.replies if reply.kind == "evaluate"]
    assert len(wire.refusals) >= 5 * 3
    assert charged(folder) == [set(range(1, plan.rounds + 2))] * 5


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_very_same_question_gets_the_very_same_bytes(tmp_path: Path, trust: str) -> None:
    folder = lay_out(tmp_path, "plain", trust)
    wire = Wire(folder)
    outcome = run(folder, wire)
    plan = Task.read(folder / "coordinator").privacy.plan  # type: ignore[union-attr]
    sent = [reply for reply in wire.replies if reply.kind == "evaluate"]
    for k, first in enumerate(sent):
        again = open_node(folder / "nodes" / str(k)).handle(final(plan, outcome.shared))
        assert {n: a.tobytes() for n, a in again.arrays.items()} == {
            n: a.tobytes() for n, a in first.arrays.items()
        }
        with pytest.raises(PrivacyRefused, match="already answered for another model"):
            open_node(folder / "nodes" / str(k)).handle(
                final(plan, {name: values * 2 for name, values in outcome.shared.items()})
            )


class OpenDoor:
    """A door that keeps nothing, for what would be drawn if it were asked again and again."""

    def earlier(self, request: Request) -> Reply | None:
        return None

    def release(self, request: Request, reply: Reply) -> Reply:
        return reply


@pytest.mark.parametrize("trust", TRUSTS)
def test_neighbouring_histories_answer_alike_whatever_the_model(trust: str) -> None:
    """Someone with a taste, someone with nothing, and someone without a held-out item: one shape, no error."""
    plan = plan_for(trust)
    terms = PrivacyTerms(plan=plan, run="run", dataset="planted", limit_epsilon=9.0)
    ids = np.array([f"i{k:03d}" for k in range(60)])
    replies = []
    for history, held in (([1, 2, 3], [4]), ([], []), (list(range(60)), []), ([], [5]), ([7, 7, 7], [7])):
        split = Split(_someone(history, ids), None, _someone(held, ids), user_key=np.array([7]))
        node = Node(
            split, MODEL, NodeSettings(seed=5), EVALUATION, LocalStore(None), None, terms,
            aggregation=PLAIN, releases=OpenDoor(),
        )  # fmt: skip
        for value in (1.0, 0.0, np.nan, np.inf, -np.inf, 3e38):
            reply = node.handle(final(plan, {"count": np.full(60, value, np.float32)}))
            arrays, header = encode(reply)
            replies.append(
                (header, {n: (a.dtype, a.shape, bool(np.isfinite(a).all())) for n, a in arrays.items()})
            )
    assert all(reply == replies[0] for reply in replies)
    assert all(fine for _, _, fine in replies[0][1].values())


def _someone(items: list[int], ids: np.ndarray[Any, Any]) -> Interactions:
    n = len(items)
    return Interactions(
        np.zeros(n, np.int64), np.array(items, np.int64), np.ones(n, np.float32), np.arange(n),
        np.array(["u"]), ids,
    )  # fmt: skip


# The noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_noise_has_the_planned_variance_and_no_bias(trust: str) -> None:
    """Three nodes and a coordinator, five hundred times: mean and variance within five standard errors."""
    plan = plan_for(trust, users=90)
    alone, times = plan.metrics_plan(), 500
    mechanism, noise = mechanism_of(alone), NoiseSource()
    clean = np.array([3.25, 11.0, 30.0])
    nodes = [PrivateMetrics(plan, np.arange(30) + 30 * k, OpenDoor()) for k in range(3)]
    request = final(plan, {})
    drawn = []
    for _ in range(times):
        total = mechanism.zero(3)
        for node in nodes:
            (sent,) = node.answer(request, lambda names: clean).arrays.values()
            total = mechanism.add(total, sent)
        drawn.append(mechanism.release(total, 90, 1, alone.clip_norm, noise)[:3] - 3 * clean)
    error, std = np.array(drawn), noise_of(alone, 90)
    n = error.size
    if trust == "central":
        assert std == pytest.approx(plan.metrics.noise_multiplier * math.sqrt(3))  # type: ignore[union-attr]
    else:
        assert std > noise_of(plan_for("central", users=90).metrics_plan(), 90)
    assert abs(error.mean()) < 5 * std / math.sqrt(n)
    # Rounding three sums at random adds at most 3/4 of a step's square.
    step = 0.0 if alone.distributed is None else 1 / alone.distributed.scale
    ratio, width = error.var() / std**2, 5 * math.sqrt(2 / n)
    assert 1 - width < ratio < 1 + width + 0.75 * step**2 / std**2


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.2, 20.0),
    share=st.floats(0.01, 0.5),
    rounds=st.integers(1, 40),
    names=st.lists(
        st.sampled_from([f"{p}/{m}@{k}" for p in ("full", "sampled") for m in ("ndcg", "hr") for k in (5, 10)]),
        min_size=1, max_size=8, unique=True,
    ),
    trust=st.sampled_from(TRUSTS),
)  # fmt: skip
def test_epsilon_holds_the_metrics_too(
    epsilon: float, share: float, rounds: int, names: list[str], trust: str
) -> None:
    plan = make_plan(
        PrivacySettings(
            unit="user", trust=trust, epsilon=epsilon, metrics="noised", metrics_share=share,
            released_metrics=tuple(names), force=True,
        ),
        population=5000, rounds=rounds, schedule=(1.0,) * rounds, parameters=300,
    )  # fmt: skip
    assert plan.metrics is not None and plan.metrics.names == tuple(names)
    assert plan.charges == rounds + 1 and plan.epsilon(rounds) < plan.epsilon() <= epsilon
    assert PrivacyPlan.model_validate_json(plan.model_dump_json()) == plan
    # Computed once more, from the noise alone.
    if trust != "distributed":
        last = 1 / plan.metrics.noise_multiplier**2
        spent = sum(1 / z**2 for z in plan.noise_multipliers) + last
        assert plan.epsilon() == pytest.approx(gaussian_epsilon(math.sqrt(spent), plan.delta), rel=1e-9)
        assert last / spent == pytest.approx(share, rel=2e-3)
        return
    own, each = plan.metrics.integers, plan.distributed
    assert own is not None and each is not None and own.bits == each.bits
    last_l2, last_l1 = own.sensitivity(math.sqrt(len(names) + 1), len(names) + 1)
    l2, l1 = each.sensitivity(plan.clip_norm, plan.parameters)
    skellam = [SkellamRelease(l2, l1, (z * l2) ** 2) for z in plan.noise_multipliers]
    skellam.append(SkellamRelease(last_l2, last_l1, (plan.metrics.noise_multiplier * last_l2) ** 2))
    left = plan.delta - rounds * each.beta - own.beta
    assert plan.epsilon() == pytest.approx(rdp_epsilon(rdp(skellam), left), rel=1e-9)


def test_intervals_cover_what_they_speak_of() -> None:
    """Evaluated users drawn anew and noise drawn anew: the true mean lies in 19 of 20 intervals of a hit rate."""
    rng, truth, covered, users, std = np.random.default_rng(1), 0.3, 0, 2000, 25.0
    for _ in range(600):
        released = np.array([rng.binomial(users, truth), users], dtype=float) + rng.normal(0, std, 2)
        mean = noised_means(("full/hr@10",), released, std).metrics["full/hr@10"]
        covered += mean.low <= truth <= mean.high
    assert 0.95 - 5 * math.sqrt(0.95 * 0.05 / 600) < covered / 600
    lost = noised_means(("full/hr@10",), np.array([40.0, -3.0]), std)
    assert (lost.metrics["full/hr@10"].low, lost.metrics["full/hr@10"].high) == (0.0, 1.0)


# What is summed -------------------------------------------------------------------------------------------

SPLIT = last_out(planted())
ABSURD = st.floats(width=32, allow_nan=True, allow_infinity=True)


def _sums(split: Split, counts: Any, names: tuple[str, ...] = NAMES, chunk: int = 256) -> Any:
    assert split.test is not None
    return bounded_sums(
        build(MODEL), {"count": np.asarray(counts, np.float32)}, {}, split.batch(split.history("refit")),
        split.batch(split.test), names, EVALUATION, 5, 60, chunk,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(ABSURD, min_size=60, max_size=60), user=st.integers(0, 119))
def test_one_user_moves_the_sum_by_no_more_than_the_bound(counts: list[float], user: int) -> None:
    whole = _sums(SPLIT, counts)
    rest = replace(
        SPLIT,
        train=SPLIT.train.select(SPLIT.train.user != user),
        validation=SPLIT.validation.select(SPLIT.validation.user != user),  # type: ignore[union-attr]
        test=SPLIT.test.select(SPLIT.test.user != user),  # type: ignore[union-attr]
    )
    moved = whole - _sums(rest, counts)
    assert np.all(moved >= 0) and np.linalg.norm(moved) <= math.sqrt(3)
    assert np.array_equal(whole * 2.0**GRID_BITS, np.rint(whole * 2.0**GRID_BITS)), "sums are exact"
    assert np.array_equal(whole, _sums(SPLIT, counts, chunk=7)), "whoever else is scored plays no part"


def test_bounded_sums_are_those_of_an_exact_evaluation() -> None:
    names = ("full/ndcg@10", "sampled/hr@10", "full/mrr@20", "sampled/map@20", "full/capped_recall@10")
    counts = SPLIT.train.item_counts.astype(np.float32)
    history, target = SPLIT.batch(SPLIT.history("refit")), SPLIT.batch(SPLIT.test)
    exact = evaluate(build(MODEL), {"count": counts}, {}, history, target, EVALUATION, 5)
    found = _sums(SPLIT, counts, names)
    for name, value in zip(names, found, strict=False):
        assert value == pytest.approx(float(exact.metrics[name][:, 0].sum()), abs=120 * 2.0**-GRID_BITS)
    assert found[-1] == exact.users[:, 0].sum()


# Kills ----------------------------------------------------------------------------------------------------


def test_a_node_killed_after_its_charge_sends_the_staged_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path, "plain", "distributed")
    plan = Task.read(folder / "coordinator").privacy.plan  # type: ignore[union-attr]
    request, place = final(plan, {"count": np.ones(60, np.float32)}), folder / "nodes" / "0"

    def killed(self: Any, request: Request, reply: Reply, memory: Any) -> Reply:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PlainSender, "send", killed)
        with pytest.raises(Killed):
            open_node(place).handle(request)
    (staged,) = (place / "outbox").iterdir()
    kept = staged.read_bytes()
    sent = open_node(place).handle(request).arrays["update"]
    assert sent.tobytes() in kept and staged.read_bytes() == kept
    with Ledger.open(place / "ledger", read_only=True) as ledger:
        (account,) = ledger.accounts()
        assert set(ledger.charged(account, "run")) == {plan.charges}
        assert ledger.spent(account).epsilon == plan.epsilon(), "an early look costs the whole plan"


@pytest.mark.parametrize("when", ["before charge", "after charge", "before result"])
@pytest.mark.parametrize("trust", ["central", "distributed"])
def test_a_killed_coordinator_says_the_same_or_draws_for_the_first_time(
    tmp_path: Path, trust: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path, "plain", trust)
    plan = Task.read(folder / "coordinator").privacy.plan  # type: ignore[union-attr]
    charge, staged = Charges.charge, folder / "coordinator" / "staged-metrics.json"
    said: list[dict[str, Any]] = []

    def killing(self: Any, round_: int, digest: str) -> None:
        if round_ == plan.charges and when == "before charge":
            raise Killed
        charge(self, round_, digest)
        if round_ == plan.charges:
            said.append(json.loads(staged.read_text()))
            if when == "after charge":
                raise Killed

    def written(self: Any, metrics: Any) -> Any:
        release(self, metrics)
        raise Killed

    release = Coordinator._release_metrics
    with monkeypatch.context() as patch:
        patch.setattr(Charges, "charge", killing)
        if when == "before result":
            patch.setattr(Coordinator, "_release_metrics", written)
        with pytest.raises(Killed):
            run(folder)
    assert not (folder / "coordinator" / "result.json").exists()
    outcome = run(folder)
    assert outcome.finished and not staged.exists()
    if said:
        assert outcome.result["test"] == said[0]
    assert charged(folder) == [set(range(1, plan.charges + 1))] * 5


def test_metrics_that_were_charged_and_are_gone_are_not_drawn_again(tmp_path: Path) -> None:
    folder = lay_out(tmp_path)
    run(folder)
    (folder / "coordinator" / "metrics.json").write_text("{}")
    coordinator = open_coordinator(folder / "coordinator", Wire(folder))
    coordinator._progress.done = False
    outcome = coordinator.run
    with pytest.raises(FedrecError, match="is not what was charged"):
        outcome()


# Who refuses ----------------------------------------------------------------------------------------------


def test_nodes_and_coordinators_know_no_held_data(tmp_path: Path) -> None:
    folder = lay_out(tmp_path)
    for path, opened in (
        (folder / "nodes" / "0" / "node.json", lambda: open_node(folder / "nodes" / "0")),
        (folder / "coordinator" / "task.json", lambda: Task.read(folder / "coordinator")),
    ):
        plain = json.loads(path.read_text())
        plain["evaluation"]["held_data"] = True
        path.write_text(json.dumps(plain))
        with pytest.raises(ConfigError, match="belongs to simulations") as caught:
            opened()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("full/auc",), "expected different ones"),
        (("full/ndcg@10", "full/ndcg@10"), "expected different ones"),
        (("lists/coverage@10",), "expected different ones"),
        (("full/ndcg@0",), "expected different ones"),
        (tuple(f"full/hr@{k}" for k in range(1, 10)), "at most 8"),
        ((), "at least 1"),
    ],
)
def test_only_bounded_metrics_and_few_of_them_are_released(names: tuple[str, ...], says: str) -> None:
    for made in (
        lambda: PrivacySettings(unit="user", epsilon=1.0, released_metrics=names),
        lambda: MetricsRelease(names=names, noise_multiplier=1.0),
    ):
        with pytest.raises(ValueError, match=says):
            made()


def test_a_plan_about_interactions_has_no_metrics() -> None:
    with pytest.raises(ConfigError, match="unit 'interaction' cannot bound them"):
        make_plan(
            PrivacySettings(unit="interaction", epsilon=3.0, metrics="noised"),
            population=1000, rounds=2, schedule=(1.0, 1.0), parameters=50,
        )  # fmt: skip


def test_too_few_bits_for_a_crowd_are_refused_by_name() -> None:
    with pytest.raises(PrivacyRefused, match=r"metrics: privacy\.bits is 8.*set privacy\.metrics to 'none'"):
        plan_for("distributed", users=6000, bits=8)
