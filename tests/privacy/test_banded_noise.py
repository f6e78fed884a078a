"""Banded noise: against written-out matrices, by sampling, by brute force over who takes part, and in whole runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from conftest import planted
from dp_accounting import pld
from scipy.linalg import toeplitz
from scipy.optimize import check_grad

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.stage import VECTOR, RoundContext
from fedrec.core.updates import BlockSpec, Layout, State, UpdateSum
from fedrec.privacy.audit import _runs as runs
from fedrec.privacy.audit import games
from fedrec.privacy.audit.bugs import inject
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.mechanisms import banded
from fedrec.privacy.mechanisms.banded import (
    Banded,
    inverse,
    optimal_coefficients,
    sensitivity_of_all,
    squared_error,
    workload,
)
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.statement import StatementFacts, statement
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import build
from fedrec.rounds.build import chain_of, private_cohort
from fedrec.rounds.chain import ServerRound
from fedrec.rounds.settings import NodeSettings
from fedrec_simulations.audit.run_audit import Training, rare_users

ROUNDS, CYCLE, RATE = 12, 4, 0.125
#: c of three bands, of norm 1 and far from optimal, so that no test passes for being close to a nice matrix.
C = np.array([0.8, 0.5, math.sqrt(1 - 0.64 - 0.25)])


def planned(
    chosen: Mapping[str, Any] | None = None, rounds: int = ROUNDS, rate: float = RATE, **changes: Any
) -> PrivacyPlan:
    settings = PrivacySettings(
        unit="user",
        mechanism="banded",
        options={"cycle": CYCLE} if chosen is None else chosen,  # type: ignore[arg-type]
        epsilon=4.0,
        force=True,
        noise_seed=1,
    )
    made = make_plan(
        settings,
        population=1000,
        rounds=rounds,
        schedule=(1.0,) * rounds,
        parameters=50,
        sampling_rate=rate,
    )
    return PrivacyPlan.model_validate(dict(made) | changes)


def with_c(c: np.ndarray, **changes: Any) -> PrivacyPlan:
    return planned({"cycle": CYCLE}, options={"coefficients": tuple(c.tolist())}, **changes)


def square(c: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """C, written out."""
    column = np.zeros(rounds)
    column[: len(c)] = c[:rounds]
    return np.asarray(toeplitz(column, np.zeros(rounds)))


def released(
    plan: PrivacyPlan, size: int, rounds: tuple[int, ...] | None = None, clip_norm: float = 1.0
) -> np.ndarray:
    """[rounds, size] what is released of empty sums."""
    mechanism, out = mechanism_of(plan), []
    state: State = mechanism.init()
    for round_ in rounds or range(1, plan.rounds + 1):
        context = mechanism.context(round_, clip_norm, NoiseSource(7).derive("round", round_))
        total, state = mechanism.on_server(UpdateSum({VECTOR: np.zeros(size)}, 0), context, state)
        out.append(total.blocks[VECTOR])
    return np.array(out)


# Matrices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [C, np.array([1.0]), np.array(optimal_coefficients(6, 20, 6))], ids=len)
def test_the_inverse_is_the_inverse(c: np.ndarray) -> None:
    np.testing.assert_allclose(square(c) @ square(inverse(c, ROUNDS)), np.eye(ROUNDS), atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_error_is_the_frobenius_norm(momentum: float) -> None:
    rounds = range(ROUNDS)
    a = np.array([[sum(momentum**k for k in range(t - j + 1)) for j in rounds] for t in rounds])
    np.testing.assert_allclose(square(workload(ROUNDS, momentum)), a)
    expected = np.linalg.norm(a @ np.linalg.inv(square(C))) ** 2
    assert squared_error(C, ROUNDS, momentum) == pytest.approx(expected)


@pytest.mark.parametrize("everyone", [False, True])
def test_the_gradient_of_the_optimisation(everyone: bool) -> None:
    def loss(tail: np.ndarray) -> float:
        return banded._loss(tail, workload(30, 0.5), everyone)[0]

    def gradient(tail: np.ndarray) -> np.ndarray:
        return banded._loss(tail, workload(30, 0.5), everyone)[1]

    assert check_grad(loss, gradient, np.array([0.5, 0.3, 0.2])) < 1e-5


def test_optimal_coefficients_beat_every_neighbour_and_the_known_factorisation() -> None:
    rounds, bands = 64, 8
    c = np.array(optimal_coefficients(bands, rounds, bands))
    best = squared_error(c, rounds)
    rng = np.random.default_rng(0)
    for _ in range(200):
        moved = np.abs(c + 0.02 * rng.normal(size=bands))
        assert squared_error(moved / np.linalg.norm(moved), rounds) > best * (1 - 1e-9)
    root = np.cumprod(
        [1.0, *((2 * k - 1) / (2 * k) for k in range(1, bands))]
    )  # the square root of A, cut off
    assert best < squared_error(root / np.linalg.norm(root), rounds) < squared_error(np.ones(1), rounds)


# Sensitivity --------------------------------------------------------------------------------------


def participations(rounds: int, separation: int) -> list[tuple[int, ...]]:
    """Every set of rounds that a user can be in, at least `separation` apart."""
    return [
        chosen
        for size in range(1, rounds + 1)
        for chosen in itertools.combinations(range(rounds), size)
        if all(b - a >= separation for a, b in itertools.pairwise(chosen))
    ]


@pytest.mark.parametrize("separation", [3, 4, 5])
def test_sensitivity_of_turns_by_brute_force(separation: int) -> None:
    """The worst user among all sets of rounds and all signs moves C X by sqrt(k) at most, and nearly so."""
    rounds, matrix, worst = 9, square(C, 9), 0.0
    for chosen in participations(rounds, separation):
        columns = matrix[:, chosen]
        for signs in itertools.product((-1.0, 1.0), repeat=len(chosen)):
            worst = max(worst, float(np.linalg.norm(columns @ np.array(signs))))
    turns = math.ceil(rounds / separation)
    assert math.sqrt(turns - 1) < worst <= math.sqrt(turns) + 1e-12


def test_sensitivity_of_all_rounds_by_brute_force() -> None:
    rounds = 6
    matrix, worst = square(C, rounds), 0.0
    for entries in itertools.product((-1.0, 0.0, 1.0), repeat=rounds):
        worst = max(worst, float(np.linalg.norm(matrix @ np.array(entries))))
    assert sensitivity_of_all(C, rounds) == pytest.approx(worst)


def test_more_directions_than_one_do_not_help_an_attacker() -> None:
    """Users send vectors: for C of at least 0, equal directions are the worst."""
    rounds, rng = 6, np.random.default_rng(1)
    for _ in range(200):
        x = rng.normal(size=(rounds, 4))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        assert np.linalg.norm(square(C, rounds) @ x) <= sensitivity_of_all(C, rounds)


def test_releases_are_those_of_the_accounting_library() -> None:
    plan = planned()
    z = plan.noise_multipliers[0]
    turns = math.ceil(ROUNDS / CYCLE)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(RATE * CYCLE, dp_accounting.GaussianDpEvent(z)), turns
    )
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    assert plan.epsilon() == pytest.approx(accountant.compose(event).get_epsilon(plan.delta), rel=1e-3)
    assert plan.epsilon() == pytest.approx(4.0, rel=1e-3) and plan.epsilon() <= 4.0
    spent = [plan.epsilon(rounds) for rounds in range(ROUNDS + 1)]
    assert spent == sorted(spent) and spent[0] == 0.0
    # In the rounds of one cycle a user is in one of them.
    assert spent[1] == spent[CYCLE] < spent[CYCLE + 1]


def test_full_participation_is_one_release_of_the_true_sensitivity() -> None:
    plan = planned({}, rate=1.0, options={"coefficients": tuple(C.tolist())})
    (release,) = plan.releases()
    assert release.noise_multiplier == plan.noise_multipliers[0] / sensitivity_of_all(C, ROUNDS)  # type: ignore[union-attr]
    # Nothing is to be won there, and so it is independent noise that is planned.
    alone = planned({}, rate=1.0)
    assert dict(alone.options)["coefficients"] == (1.0,)
    independent = make_plan(
        PrivacySettings(unit="user", epsilon=4.0, force=True),
        population=1000,
        rounds=ROUNDS,
        schedule=(1.0,) * ROUNDS,
        parameters=50,
    )
    assert alone.noise_multipliers[0] == pytest.approx(independent.noise_multipliers[0], rel=1e-3)


# Noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rounds", [tuple(range(1, ROUNDS + 1)), (1, 2, 5, 6, 9, 12)], ids=["all", "some lost"]
)
def test_covariance_of_the_noise(rounds: tuple[int, ...]) -> None:
    """Rounds that were lost count: their noise was drawn, and later rounds take it back all the same."""
    size, clip_norm, plan = 40_000, 2.5, with_c(C)
    noise = released(plan, size, rounds, clip_norm) / (plan.noise_multipliers[0] * clip_norm)
    inv = np.linalg.inv(square(C))
    expected = (inv @ inv.T)[np.ix_(np.array(rounds) - 1, np.array(rounds) - 1)]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(noise @ noise.T / size - expected) / scale).max() < 5 / math.sqrt(size)
    std = [plan.noise_std(round_, clip_norm) for round_ in rounds]
    np.testing.assert_allclose(std, plan.noise_multipliers[0] * clip_norm * np.sqrt(np.diag(expected)))


def test_an_attacker_who_sees_all_rounds_is_left_with_independent_noise() -> None:
    plan = with_c(C)
    made = np.array(Banded(plan).independent(list(released(plan, 20_000)))) / plan.noise_multipliers[0]
    correlation = made @ made.T / 20_000
    assert np.abs(correlation - np.eye(ROUNDS)).max() < 5 / math.sqrt(20_000)


def test_prefix_sums_hold_the_expected_error_and_less_than_independent_noise() -> None:
    plan, size = planned({"cycle": CYCLE}, rate=1 / CYCLE), 20_000
    sums = np.cumsum(released(plan, size), axis=0) / plan.noise_multipliers[0]
    expected = squared_error(Banded(plan).coefficients, ROUNDS)
    assert np.square(sums).sum() / size == pytest.approx(expected, rel=0.05)
    assert expected < 0.5 * squared_error(np.ones(1), ROUNDS)


def test_a_stored_state_continues_the_same_noise() -> None:
    plan, size = with_c(C), 50
    whole, mechanism = released(plan, size), mechanism_of(plan)
    state: State = mechanism.init()
    for round_ in range(1, ROUNDS + 1):
        # As a checkpoint does it: arrays to bytes and back.
        state = {name: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape) for name, v in state.items()}
        context = mechanism.context(round_, 1.0, NoiseSource(7).derive("round", round_))
        before = {name: v.copy() for name, v in state.items()}
        total, after = mechanism.on_server(UpdateSum({VECTOR: np.zeros(size)}, 0), context, state)
        retried = replace(context, noise=NoiseSource(7).derive("round", round_))
        again, _ = mechanism.on_server(UpdateSum({VECTOR: np.zeros(size)}, 0), retried, state)
        np.testing.assert_array_equal(total.blocks[VECTOR], whole[round_ - 1])
        np.testing.assert_array_equal(again.blocks[VECTOR], whole[round_ - 1])
        assert all(np.array_equal(state[name], before[name]) for name in state), "the given state was changed"
        state = after
        assert len(state["past"]) == (min(round_, len(C) - 1) if round_ < ROUNDS else 0)


def test_the_last_state_holds_no_noise() -> None:
    plan = with_c(C)
    mechanism, state = mechanism_of(plan), mechanism_of(plan).init()
    context = mechanism.context(ROUNDS, 1.0, NoiseSource(7))
    _, state = mechanism.on_server(UpdateSum({VECTOR: np.zeros(9)}, 0), context, state)
    assert state["past"].size == 0


def test_unseeded_noise_is_never_the_same_twice() -> None:
    plan = with_c(C, noise_seed=None)
    mechanism = mechanism_of(plan)
    contexts = [mechanism.context(1, 1.0, NoiseSource()) for _ in range(2)]
    first, second = (
        mechanism.on_server(UpdateSum({VECTOR: np.zeros(9)}, 0), context, mechanism.init())[0].blocks[VECTOR]
        for context in contexts
    )
    assert not np.isin(first, second).any()


def test_a_vector_of_another_length_is_not_released() -> None:
    mechanism = mechanism_of(with_c(C))
    state = mechanism.init()
    for round_, size in ((1, 9), (2, 8)):
        context = mechanism.context(round_, 1.0, NoiseSource(7))
        total = UpdateSum({VECTOR: np.zeros(size)}, 0)
        if size == 9:
            _, state = mechanism.on_server(total, context, state)
            continue
        with pytest.raises(PrivacyRefused, match="sum of 8 values after one of 9"):
            mechanism.on_server(total, context, state)


# The chain ----------------------------------------------------------------------------------------


def test_a_sum_that_was_kept_resumes_with_its_noise() -> None:
    """Under secure aggregation a killed coordinator has the noised sum on disk, and no checkpoint yet."""
    plan, whole = with_c(C), Layout({"table": BlockSpec((10, 5))})
    chain = chain_of(NodeSettings(), plan, gradient=True)
    states, source = chain.init(), NoiseSource(3)
    for round_ in range(1, ROUNDS + 1):
        noise = source.derive("round", round_)
        turn = ServerRound(chain, whole, 10, round_, states, noise)
        combined = turn.combine([UpdateSum({VECTOR: np.ones(50)}, 9)])
        kept = turn.keep(combined)
        total, after, facts = turn.finish(combined)
        resumed = ServerRound(chain, whole, 10, round_, states, noise)
        again, states, _ = resumed.finish(resumed.released(kept))
        np.testing.assert_array_equal(total.blocks["table"], again.blocks["table"])
        assert total.noise_std == again.noise_std == facts["noise_std"]
        assert set(after) == set(states)
        assert all(np.array_equal(after[name], states[name]) for name in after)


@pytest.mark.parametrize(
    "settings",
    [{"shard_parameters": 20}, {"compression": {"rows": 0.5}}, {"compression": {"rank": 2}}],
    ids=str,
)
def test_refused_where_rounds_send_other_values(settings: dict[str, Any]) -> None:
    chain = chain_of(NodeSettings.model_validate(settings), with_c(C), gradient=True)
    with pytest.raises(ConfigError, match="other values of table in every round"):
        ServerRound(chain, Layout({"table": BlockSpec((10, 5))}), 10, 1, chain.init(), NoiseSource(1))


def test_refused_for_sums_that_are_not_added_up() -> None:
    with pytest.raises(ConfigError, match="no steps of one sum"):
        chain_of(NodeSettings(), with_c(C), gradient=False)
    assert chain_of(NodeSettings(shard_parameters=50), with_c(C), gradient=True).mechanisms


# Turns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("rate", [RATE, 1 / CYCLE])
def test_users_join_in_their_turn_alone(rate: float, seeded: bool) -> None:
    plan, users = planned(rate=rate, noise_seed=1 if seeded else None), 2000
    cohort = private_cohort(plan)
    batch = UserBatch(
        np.arange(users), np.zeros(users + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    )
    joined = np.array(
        [cohort.joins(batch, RoundSeed(5, round_), NoiseSource()) for round_ in range(1, ROUNDS + 1)]
    )
    groups = [joined[k::CYCLE].any(axis=0) for k in range(CYCLE)]
    assert (np.sum(groups, axis=0) <= 1).all(), "a user took part less than a cycle apart"
    assert joined.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate / joined.size))
    sizes = [int(group.sum()) for group in groups]
    if rate == 1 / CYCLE:
        assert sum(sizes) == users and (joined[:CYCLE] == joined[CYCLE : 2 * CYCLE]).all()
        assert max(sizes) - min(sizes) < 150
    else:
        assert not (joined[:CYCLE] == joined[CYCLE : 2 * CYCLE]).all()


# Plan and statement -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rate", "message"),
    [
        ({"cycle": 4, "band": 3}, RATE, "privacy.options: band"),
        ({"cycle": 1}, RATE, "cycle = 1: Input should be greater than or equal to 2"),
        ({"cycle": 4, "bands": 5}, RATE, "expected at most as many bands as groups"),
        ({"cycle": 16}, RATE, "expected at most 1/cycle"),
        ({}, RATE, "set privacy.options.cycle, or federation.sampling_rate = 1"),
    ],
)
def test_what_cannot_be_planned(options: dict[str, Any], rate: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(options, rate=rate, rounds=20)


def test_plans_that_do_not_hold_together() -> None:
    for changes, message in (
        ({"options": {"coefficients": (0.8, 0.5)}}, "of norm 1"),
        ({"options": {}}, "needs options.coefficients"),
        ({"options": {"coefficients": (0.8, -0.6)}}, "at least 0"),
        ({"noise_multipliers": (1.0,) * (ROUNDS - 1) + (2.0,)}, "the same in every round"),
        ({"cycle": None}, "'cyclic' and 'min_separation' have one"),
        ({"mechanism": None}, "groups of users that take turns are not for mechanism 'central'"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(**changes)


def test_a_plan_survives_json_and_options_of_others_are_refused() -> None:
    plan = planned()
    assert PrivacyPlan.model_validate_json(plan.model_dump_json()) == plan
    assert hash(plan) == hash(PrivacyPlan.model_validate_json(plan.model_dump_json()))
    with pytest.raises(ConfigError, match="this mechanism takes none"):
        make_plan(
            PrivacySettings(unit="user", epsilon=4.0, options={"bands": 3}),  # type: ignore[arg-type]
            population=1000,
            rounds=4,
            schedule=(1.0,) * 4,
            parameters=5,
        )


def test_the_statement_says_how_noise_is_correlated() -> None:
    facts = StatementFacts(
        rounds=ROUNDS, engine="in process", nodes=1, users_per_node=1000, code="0", config_hash="x"
    )
    made = statement(planned(noise_seed=None), facts)
    text = " ".join(line for name in made if isinstance(made[name], dict) for line in made[name]["text"])
    assert "correlated over rounds (banded matrix factorisation)" in text
    assert "spread over 4 groups by a hash, and the groups take turns" in text
    assert "joins its turn with probability 0.5" in text
    assert "holds the noise of the last 3 rounds" in text
    assert made["sampling"]["assumed"] == "cyclic" and made["sampling"]["amplification_claimed"]
    assert made["guarantee"]["epsilon"] == pytest.approx(4.0, rel=1e-3)


def test_context_of_the_release_sizes_the_noise() -> None:
    mechanism = mechanism_of(with_c(C))
    assert isinstance(mechanism, Banded)
    context = mechanism.context(1, 3.0, NoiseSource(1))
    assert isinstance(context, RoundContext) and context.bound.l2 == 3.0
    total, _ = mechanism.on_server(UpdateSum({VECTOR: np.zeros(5)}, 0), context, mechanism.init())
    assert total.noise_std == pytest.approx(3.0 * mechanism.plan.noise_multipliers[0] / C[0])


# Audit -----------------------------------------------------------------------------------------------


def audited(rate: float, cycle: int | None, rounds: int = 12) -> tuple[PrivacyPlan, Training]:
    settings = PrivacySettings(
        unit="user",
        mechanism="banded",
        options={} if cycle is None else {"cycle": cycle},  # type: ignore[arg-type]
        epsilon=3.0,
        delta=1e-5,
        clip_norm=0.5,
        force=True,
    )
    model = build(MfConfig(embedding_size=8))
    plan = make_plan(
        settings,
        population=500,
        rounds=rounds,
        schedule=(1.0,) * rounds,
        parameters=model.layout(60).size,
        sampling_rate=rate,
    )
    batch = planted(80, 60).batch(np.arange(80))
    others = rare_users(60, 80, np.random.default_rng(0)).take(np.arange(10))
    return plan, Training(model, plan, batch, others, 60, 0)


@pytest.mark.parametrize(("rate", "cycle"), [(1.0, None), (0.25, 4), (0.1, 4)])
def test_the_audit_passes_it_on_many_seeds(rate: float, cycle: int | None) -> None:
    plan, subject = audited(rate, cycle)
    verdicts = [games.audit(plan, subject, 120, seed).verdict for seed in range(6)]
    assert verdicts.count("VIOLATED") <= 1 and set(verdicts) <= {"VIOLATED", "consistent"}


@pytest.mark.parametrize("bug", ["noise/10", "no clip", "per-block clip", "weights by example count"])
def test_the_audit_finds_planted_bugs(bug: str) -> None:
    plan, subject = audited(0.25, 4)
    with inject(bug):
        assert games.audit(plan, subject, 400, 1, bug).verdict == "VIOLATED"


def test_the_audit_finds_noise_of_another_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As loud in every single round, and taken back by more than the plan's coefficients say."""
    plan, subject = audited(0.25, 4)
    assert games.audit(plan, subject, 400, 1).verdict == "consistent"
    real = Banded._next

    def greedy(self: Banded, past: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        if not len(past):
            return real(self, past, fresh)
        return np.asarray(-0.999 * past[0] + 0.05 * fresh)

    monkeypatch.setattr(Banded, "_next", greedy)
    assert games.audit(plan, subject, 400, 1).verdict == "VIOLATED"


def test_the_audit_finds_users_who_are_not_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, subject = audited(0.1, 4)
    monkeypatch.setattr(runs, "in_turn", lambda plan, canaries, round_: np.ones(canaries, dtype=bool))
    monkeypatch.setattr(runs, "coins", lambda plan, included, rng: included)
    assert games.audit(plan, subject, 400, 0).verdict == "VIOLATED"
