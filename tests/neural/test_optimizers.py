"""Schedules, the optimisers on the device against torch, SCAFFOLD, and stopping early on sums that stay hidden."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import last_out, planted
from flower_helpers import lay_out
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, seeds
from pydantic import ValidationError
from test_secure_rounds import Nodes, records, run

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import Catalog, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.neural.batched import Params, Touched, Work
from fedrec.neural.device_optimizer import DeviceOptimizer, Stepper
from fedrec.neural.learning_rates import Schedule
from fedrec.neural.recommender import NeuralConfig, NeuralRecommender, Parameter
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.neural.wrapper_settings import Scaffold
from fedrec.recommenders.registry import build, parse
from fedrec.recommenders.wrappers.scaffold import COMMON, OWN, Scaffolded
from fedrec.rounds.chain import train_users
from fedrec.rounds.settings import RoundSettings
from fedrec.testing import RecommenderContract
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_folder import RunFolder

OPEN = {"unit": "none", "aggregator": "plain", "insecure": True}

# Schedules ---------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(["constant", "linear", "cosine", "exponential"]),
    warm_up=st.integers(0, 20),
    more=st.integers(2, 200),
    floor=st.floats(0.01, 1.0),
)
@quick
def test_a_schedule_rises_to_one_and_falls_to_its_floor(
    kind: str, warm_up: int, more: int, floor: float
) -> None:
    horizon = warm_up + more
    schedule = Schedule(kind=kind, warm_up=warm_up, horizon=horizon, floor=floor)
    top = max(warm_up, 1)
    factors = [schedule.factor(r) for r in range(1, horizon + 50)]
    assert factors[top - 1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(factors[:top]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[top - 1 :]))
    last = 1.0 if kind == "constant" else floor
    assert all(f == pytest.approx(last) for f in factors[horizon - 1 :])
    assert schedule.is_flat == (kind == "constant" and warm_up < 2)


def test_decays_pass_through_their_known_middles() -> None:
    middle = {
        kind: Schedule(kind=kind, horizon=101, floor=0.04).factor(51)
        for kind in ("linear", "cosine", "exponential")
    }
    assert middle == pytest.approx({"linear": 0.52, "cosine": 0.52, "exponential": 0.2})


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "linear", "warm_up": 10, "horizon": 10},
        {"kind": "exponential"},
        {"kind": "step"},
        {"floor": 1.5},
        {"horizon": 1},
        {"warm_up": -1},
    ],
)
def test_wrong_schedules_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Schedule(**wrong)


# On the device -----------------------------------------------------------------------------------------

PEERS = {
    "sgd": lambda p: torch.optim.SGD([p], lr=0.05),
    "momentum": lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.8),
    "adagrad": lambda p: torch.optim.Adagrad([p], lr=0.05, eps=1e-6),
    # RMSProp with its beginning at zero corrected for is Adam without a first moment.
    "rmsprop": lambda p: torch.optim.Adam([p], lr=0.05, betas=(0.0, 0.9), eps=1e-6),
    "adam": lambda p: torch.optim.Adam([p], lr=0.05, betas=(0.8, 0.9), eps=1e-6),
}


@pytest.mark.parametrize("name", list(PEERS))
@given(seed=seeds, counts=st.lists(st.integers(0, 12), min_size=1, max_size=5))
@quick
def test_every_user_moves_as_under_torch_alone(name: str, seed: int, counts: list[int]) -> None:
    """Own quadratics ½ (w - b)ᵀ A (w - b), own numbers of steps, all users at once beside each on its own."""
    rng = np.random.default_rng(seed)
    n, d = len(counts), 3
    root = rng.normal(size=(n, d, d))
    a = torch.from_numpy(root @ root.transpose(0, 2, 1))
    b, start = torch.from_numpy(rng.normal(size=(n, d))), torch.from_numpy(rng.normal(size=(n, d)))
    rule = DeviceOptimizer(name=name, learning_rate=0.05, momentum=0.8, second_moment=0.9, epsilon=1e-6)
    stepper, delta = Stepper(rule, frozenset({"w"})), {"w": torch.zeros(n, d, dtype=torch.float64)}
    for step in range(max(counts)):
        gradient = torch.bmm(a, (start + delta["w"] - b).unsqueeze(-1)).squeeze(-1)
        active = torch.tensor([step < count for count in counts], dtype=torch.float64)
        stepper.step(delta, {"w": gradient}, active)
    for user, count in enumerate(counts):
        alone = start[user].clone().requires_grad_()
        peer = PEERS[name](alone)
        for _ in range(count):
            peer.zero_grad()
            (0.5 * (alone - b[user]) @ a[user] @ (alone - b[user])).backward()
            peer.step()
        torch.testing.assert_close(start[user] + delta["w"][user], alone.detach(), rtol=1e-6, atol=1e-8)


def test_the_proximal_pull_is_towards_the_beginning_and_for_shared_parameters_only() -> None:
    """With gradient w - b the fixed point under μ is (start μ + b) / (1 + μ); what is personal goes all the way."""
    rule = DeviceOptimizer(learning_rate=0.1, local_learning_rate=0.2, proximal=3.0)
    stepper = Stepper(rule, frozenset({"shared"}))
    delta = {name: torch.zeros(1, 1) for name in ("shared", "own")}
    for _ in range(300):
        stepper.step(delta, {name: 1.0 + values - 5.0 for name, values in delta.items()})
    assert delta["shared"].item() == pytest.approx((1.0 * 3 + 5.0) / 4 - 1.0, abs=1e-4)
    assert delta["own"].item() == pytest.approx(4.0, abs=1e-4)


def test_a_device_schedule_scales_both_rates_and_nothing_else() -> None:
    schedule = Schedule(kind="linear", horizon=11)
    rule = DeviceOptimizer(name="adam", learning_rate=0.4, local_learning_rate=0.2, schedule=schedule)
    half = rule.at(6)
    assert (half.learning_rate, half.local_learning_rate) == pytest.approx((0.2, 0.1))
    assert half.name == "adam" and rule.at(1).learning_rate == 0.4
    plain = DeviceOptimizer()
    assert plain.at(7) is plain


def test_the_round_reaches_the_device() -> None:
    """A model whose rate has fallen to zero stays where it is; its server would move it."""
    values = {"embedding_size": 4, "max_length": 5, "dropout": 0.0}
    fallen = {"learning_rate": 1.0, "schedule": {"kind": "linear", "horizon": 3}}
    recommender = build(parse({"kind": "gru4rec", "device": fallen, **values}))
    shared = recommender.init_shared(9, 0)
    batch = UserBatch(np.array([4]), np.array([0, 5]), np.arange(5), np.ones(5, dtype=np.float32))
    norms = [
        float(recommender.compute_updates(shared, {}, batch, RoundSeed(0, r), 9)[0].norms()[0])
        for r in (1, 2, 3)
    ]
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-5)
    assert norms[0] > 0 and norms[2] == 0


# SCAFFOLD ----------------------------------------------------------------------------------------------


class _Bowls:
    """User u's loss is a_u (w - b_u)² / 2, the same in every step."""

    def __init__(self, steepness: torch.Tensor, bottom: torch.Tensor, steps: int) -> None:
        self.steepness, self.bottom, self.steps = steepness, bottom, steps
        self.examples = np.ones(len(steepness))

    def active(self, step: int) -> torch.Tensor | None:
        return None

    def loss(self, params: Params, step: int) -> torch.Tensor:
        apart = params["w"][:, 0] - self.bottom
        return self.steepness * apart.square() / 2 + 0 * params["unused"].sum(1)


class Bowls(NeuralRecommender):
    """A model of one number, on users who disagree about it."""

    kind = "bowls"
    steepness = torch.tensor([0.2, 1.0, 6.0, 3.0])
    bottom = torch.tensor([4.0, -2.0, 1.0, 0.0])

    def parameters(self) -> dict[str, Parameter]:
        return {"w": Parameter((1,)), "unused": Parameter((), where="table")}

    def work(
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        steps = self.training.local_epochs
        return _Bowls(self.steepness[batch.user], self.bottom[batch.user], steps), None

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> torch.Tensor:
        return params["unused"]


def settle(recommender: NeuralRecommender, rounds: int = 400) -> tuple[State, State]:
    """After many rounds with everyone."""
    users = np.arange(4)
    batch = UserBatch(users, np.arange(5), np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.float32))
    shared, local = recommender.init_shared(2, 0), recommender.init_local(users, 0)
    for number in range(1, rounds + 1):
        total, local = train_users(recommender, shared, local, batch, RoundSeed(0, number), None, 2)
        shared, _ = recommender.apply(shared, {}, total)
    return shared, local


def test_control_variates_lead_to_the_common_minimum_where_averaging_stops_short() -> None:
    config = NeuralConfig(
        local_epochs=10,
        device=DeviceOptimizer(learning_rate=0.1),
        server=ServerOptimizer(name="sgd", learning_rate=1.0),
    )
    bowls = Bowls(config)
    best = float((bowls.steepness * bowls.bottom).sum() / bowls.steepness.sum())
    drifted, _ = settle(bowls)
    found, local = settle(Scaffolded(bowls, Scaffold(items=2, users=4)))
    assert abs(drifted["w"][0] - best) > 0.3
    assert found["w"][0] == pytest.approx(best, abs=1e-4)
    # At the minimum each user's variate is its own gradient, and the server's their mean, zero.
    own = (bowls.steepness * (best - bowls.bottom)).numpy()
    np.testing.assert_allclose(local[OWN + "w"][:, 0], own, atol=1e-3)
    np.testing.assert_allclose(found[COMMON + "w"], 0.0, atol=1e-4)


class TestScaffold(RecommenderContract):
    rounds = 40

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return build(parse(SCAFFOLDED))

    def test_the_common_variate_is_the_mean_of_all(self, recommender, trained) -> None:
        shared, local = trained
        for name in recommender.layout(60).blocks:
            if not name.startswith(COMMON):
                mean = local[OWN + name].mean(axis=0)
                np.testing.assert_allclose(shared[COMMON + name], mean, atol=1e-5)

    def test_variates_of_users_never_leave(self, recommender) -> None:
        assert not any(name.startswith(OWN) for name in recommender.layout(60).blocks)
        assert recommender.layout(60).size == 2 * build(parse(SASREC)).layout(60).size


SASREC = {
    "kind": "sasrec",
    "embedding_size": 8,
    "max_length": 12,
    "blocks": 1,
    "dropout": 0.1,
    "local_epochs": 2,
    "device": {"learning_rate": 0.3},
    "server": {"name": "adam", "learning_rate": 0.02},
}
SCAFFOLDED = SASREC | {"scaffold": {"items": 60, "users": 120}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": {"name": "adam"}}, "device.name = 'sgd'"),
        ({"device": {"proximal": 0.1}}, "proximal = 0"),
        ({"loss": "sampled"}, "loss = 'full'"),
        ({"scaffold": {"items": 200_000, "users": 120}}, "bytes on every device, more than 4,000,000"),
        ({"personal": {"level": "fedper"}}, "exclude each other"),
    ],
)
def test_what_scaffold_cannot_bear_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(parse(SCAFFOLDED | change))


def test_another_catalogue_or_population_than_stated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="items is 60, the catalogue has 61"):
        build(parse(SCAFFOLDED)).init_shared(61, 0)
    split = last_out(planted())
    prepared = Prepared(split, Catalog.bare(split.train.item_ids), {"name": "planted"})
    config = parse_config({"model": SCAFFOLDED | {"scaffold": {"items": 60, "users": 99}}, "privacy": OPEN})
    with pytest.raises(ConfigError, match="users is 99, the data have 120"):
        RunFolder.create(tmp_path / "run", config, prepared, 1)
    assert not (tmp_path / "run").exists()


def test_the_common_variate_stays_the_mean_when_some_take_part(split: Split) -> None:
    recommender = build(parse(SCAFFOLDED))
    everyone = split.train.batch(np.arange(120))
    shared, local = recommender.init_shared(60, 0), recommender.init_local(everyone.user, 0)
    server, rng = recommender.init_server(shared), np.random.default_rng(2)
    for number in range(1, 9):
        rows = np.sort(rng.choice(120, 30, replace=False))
        mine = {name: values[rows] for name, values in local.items()}
        total, after = train_users(
            recommender, shared, mine, everyone.take(rows), RoundSeed(0, number), None, 60
        )
        for name, values in after.items():
            local[name][rows] = values
        shared, server = recommender.apply(shared, server, total)
    moved = 0.0
    for name in recommender.layout(60).blocks:
        if not name.startswith(COMMON):
            mean = local[OWN + name].mean(axis=0)
            np.testing.assert_allclose(shared[COMMON + name], mean, atol=1e-5)
            moved = max(moved, float(np.abs(mean).max()))
    assert moved > 1e-3


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"compression": {"rank": 2}}, "rank and rows leave parts out"),
        ({"compression": {"rows": 0.5}}, "rank and rows leave parts out"),
        ({"shard_parameters": 500}, "500 are sent in a round"),
    ],
)
def test_what_is_left_out_of_an_update_would_be_lost_to_a_variate(
    rules: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config({"model": SCAFFOLDED, "federation": rules, "privacy": OPEN})


# Early stopping ----------------------------------------------------------------------------------------


def test_a_secure_run_stops_early_where_a_run_in_the_clear_does(tmp_path: Path) -> None:
    """Sums of metrics are masked like updates; the coordinator still sees that nothing improves any more."""
    rounds = RoundSettings(rounds=40, min_nodes=3, deadline_seconds=5, patience=1)
    outcomes = {}
    for name in ("clear", "secure"):
        folder = lay_out(tmp_path / name, 4, rounds, validation=True, secure=name == "secure")
        outcome = run(folder, Nodes(folder))
        evaluated = [r for r in records(folder) if "validation" in r]
        outcomes[name] = (
            [(r["round"], r["validation"]["full/ndcg@10"]) for r in evaluated],
            outcome.rounds,
            json.loads((folder / "coordinator" / "result.json").read_text())["validation"],
        )
    clear, secure = outcomes["clear"], outcomes["secure"]
    values = [value for _, value in clear[0]]
    best = int(np.argmax(values))
    assert clear[0][-1][0] < 40 and len(values) == best + 2
    assert secure[0] == [(number, pytest.approx(value, abs=1e-3)) for number, value in clear[0]]
    assert secure[1] == clear[1] == clear[0][best][0]
    assert secure[2]["full/ndcg@10"] == pytest.approx(clear[2]["full/ndcg@10"], abs=1e-3)
