"""Bounds on epsilon from canary scores: against known mechanisms, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from fedrec.core.updates import BlockSpec, Layout
from fedrec.privacy.accounting import gaussian_epsilon
from fedrec.privacy.audit import _bounds as bounds
from fedrec.privacy.audit._bounds import Rates, Scores
from fedrec.privacy.audit._canaries import Directions, spread, stacked
from fedrec.privacy.audit._theory import Theory, correlation_lower, noise_upper

DELTA = 1e-5


def gaussian_scores(mu: float, canaries: int, seed: int) -> Scores:
    """What the best attacker sees of a mu-Gaussian mechanism."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    return Scores.split(rng.normal(size=canaries) + mu * included, included)


def gaussian_theory(*multipliers: float, rate: float = 1.0) -> Theory:
    mu = math.sqrt(sum(z**-2 for z in multipliers))
    return Theory(multipliers, rate, DELTA, gaussian_epsilon(mu, DELTA))


# Single bounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (20, 20), (170, 400)])
def test_clopper_pearson_is_the_exact_interval(k: int, n: int) -> None:
    exact = binomtest(k, n).proportion_ci(confidence_level=0.9, method="exact")
    low, high = bounds.clopper_pearson(k, n, 0.05)
    assert low == pytest.approx(exact.low)
    assert high == pytest.approx(exact.high)


def test_one_run_p_value_without_delta_is_a_binomial_tail() -> None:
    p = 1 / (1 + math.exp(-1.0))
    assert bounds.one_run_p_value(100, 40, 35, 1.0, 0.0) == pytest.approx(binom.sf(34, 40, p))
    assert bounds.one_run_p_value(100, 40, 35, 1.0, 1e-3) > binom.sf(34, 40, p)


@given(st.integers(1, 60), st.floats(0.0, 5.0), st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_more_privacy_lost_makes_guesses_likelier(right: int, epsilon: float, more: float) -> None:
    p, q = (bounds.one_run_p_value(60, 60, right, e, 1e-5) for e in (epsilon, epsilon + more))
    assert 0 <= p <= q + 1e-12 <= 1 + 1e-9
    refuted = [bounds.gaussian_refuted(60, 60, right, mu, 0.05) for mu in (epsilon, epsilon + more)]
    assert refuted[0] or not refuted[1]


def test_rates_give_epsilon_and_mu() -> None:
    assert Rates(0.5, 0.1).epsilon(0.0) == pytest.approx(math.log(5))
    assert Rates(0.1, 0.5).epsilon(0.0) == Rates(0.1, 0.5).mu() == 0.0
    assert Rates(0.8413447, 0.1586553).mu() == pytest.approx(2.0, abs=1e-5)


def test_guesses_about_ties_know_nothing() -> None:
    flat = Scores(np.zeros(400), np.zeros(400))
    assert bounds.one_run_epsilon(flat, DELTA, 0.05) < 0.5
    assert bounds.rates(flat, 0.05).mu() == 0.0


# Against known mechanisms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "broken"), [(1.0, False), (math.sqrt(20) / 4, False), (10.0, True)])
def test_a_gaussian_mechanism_with_a_thousand_canaries(mu: float, broken: bool) -> None:
    runs = [gaussian_scores(mu, 1000, seed) for seed in range(5)]
    strict = np.mean([bounds.one_run_epsilon(s, DELTA, 0.05) for s in runs])
    fdp = np.mean([gaussian_epsilon(bounds.one_run_mu(s, 0.05), DELTA) for s in runs])
    gdp = np.mean([gaussian_epsilon(bounds.rates(s, 0.05).mu(), DELTA) for s in runs])
    effect = np.mean([bounds.effect(s, 0.05).value for s in runs])
    assert strict < min(fdp, gdp)
    assert effect == pytest.approx(mu, rel=0.1)
    if broken:
        # The strict bound is capped by the number of canaries; the others see a tenth of the noise.
        assert 4.0 < strict < 5.2
        assert fdp > 7.0
        assert gdp > 15.0
    else:
        assert strict > 0.8
        assert gdp < gaussian_epsilon(mu, DELTA)


def test_more_canaries_can_show_more() -> None:
    reach = [
        bounds.one_run_epsilon(gaussian_scores(1.0, m, 0).perfect(), DELTA, 0.05) for m in (50, 200, 1000)
    ]
    assert reach == sorted(reach)
    assert reach[0] < 2.5 < reach[2]


def test_bounds_are_seldom_wrong_on_a_gaussian_mechanism() -> None:
    mu, repetitions, wrong = 0.6, 200, np.zeros(4)
    for seed in range(repetitions):
        scores = gaussian_scores(mu, 120, seed)
        interval = bounds.effect(scores, 0.05)
        wrong += [
            bounds.rates(scores, 0.05).mu() > mu,
            bounds.one_run_mu(scores, 0.05) > mu,
            bounds.one_run_epsilon(scores, DELTA, 0.05) > gaussian_epsilon(mu, DELTA),
            not interval.low <= mu <= interval.high,
        ]
    # 5 % and three standard errors; the interval is approximate and must not be far too wide either.
    assert np.all(wrong / repetitions < 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions))
    assert wrong[3] > 0


def test_one_run_bound_is_seldom_wrong_where_it_is_tight() -> None:
    """Randomised response: every guess is right with exactly e^epsilon / (1 + e^epsilon)."""
    epsilon, repetitions = 1.0, 200
    truth = 1 / (1 + math.exp(-epsilon))
    found = []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        included = rng.random(400) < 0.5
        said = np.where(rng.random(400) < truth, included, ~included)
        found.append(bounds.one_run_epsilon(Scores.split(said.astype(float), included), 0.0, 0.05))
    assert np.mean(np.array(found) > epsilon) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert np.mean(found) > 0.5 * epsilon


def test_effect_without_any_noise_is_infinite() -> None:
    assert bounds.effect(Scores(np.ones(9), np.zeros(9)), 0.05).low == math.inf
    assert bounds.effect(Scores(np.zeros(9), np.zeros(9)), 0.05).high == 0.0


# Theory -------------------------------------------------------------------------------------------------


def test_a_scale_below_one_costs_more_than_is_claimed() -> None:
    theory = gaussian_theory(2.0, 2.0, 4.0)
    assert theory.epsilon_at(1.0) == pytest.approx(theory.epsilon)
    assert theory.epsilon_at(0.5) > theory.epsilon > theory.epsilon_at([1.0, 1.0, math.inf])
    assert theory.epsilon_at(math.inf) == 0.0
    assert theory.epsilon_at(0.0) == math.inf
    assert theory.scale_of_mu(theory.mu) == pytest.approx(1.0)


def test_sampling_is_part_of_the_claim() -> None:
    sampled = Theory((1.0,) * 10, 0.1, DELTA, 3.0)
    assert sampled.epsilon_at(1.0) == pytest.approx(3.0)
    assert sampled.epsilon_at(0.9) > 3.0
    # What a full Gaussian of the same z would allow is far too much here.
    assert sampled.scale_of_rates(Rates(0.9, 0.01)) < 0.5
    assert sampled.scale_of_rates(Rates(0.1, 0.1)) == math.inf


def test_sampled_attacks_on_a_correct_schedule_do_not_refute_it() -> None:
    z, q, rounds, wrong = 1.5, 0.2, 5, 0
    theory = Theory((z,) * rounds, q, DELTA, 1.0)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        included = rng.random(200) < 0.5
        takes_part = included[:, None] & (rng.random((200, rounds)) < q)
        sums = (takes_part + z * rng.normal(size=(200, rounds))).sum(axis=1) / (z * math.sqrt(rounds))
        scores = Scores.split(sums, included)
        wrong += theory.scale_of_rates(bounds.rates(scores, 0.05)) < 1.0
        wrong += theory.scales_of_effect(bounds.effect(scores, 0.1))[1] < 1.0
    assert wrong / 80 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 80)


def test_noise_upper_is_seldom_below_the_truth() -> None:
    draws = np.random.default_rng(0).normal(size=(400, 50)) * 3.0
    below = np.mean([noise_upper(float(row @ row), 50, 0.05) < 3.0 for row in draws])
    assert 0.01 < below < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_correlation_is_seen_only_where_it_is() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 2000))
    assert correlation_lower(a, b, 0.01) == 0.0
    assert correlation_lower(a, a, 0.01) > 0.999
    assert 0.5 < correlation_lower(a, -a + 0.3 * b, 0.01) < 1.0


# Canaries -----------------------------------------------------------------------------------------------

LAYOUT = Layout(
    {"table": BlockSpec((12, 5)), "gram": BlockSpec((7, 7), symmetric=True), "bias": BlockSpec((3,))}
)


def test_directions_are_orthonormal_and_scored_by_inner_products() -> None:
    lines = Directions(LAYOUT, 20, np.random.default_rng(0))
    updates = lines.updates(np.arange(20), 1.0)
    vectors = np.stack([updates.vector(k, LAYOUT) for k in range(20)])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(20), atol=1e-12)
    np.testing.assert_allclose(updates.norms(), 1.0)
    output = np.random.default_rng(1).normal(size=LAYOUT.size)
    np.testing.assert_allclose(lines.scores(output), vectors @ output)


@given(st.integers(2, LAYOUT.size), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_no_canary_is_left_without_a_direction(count: int, seed: int) -> None:
    lines = Directions(LAYOUT, count, np.random.default_rng(seed))
    np.testing.assert_allclose(lines.updates(np.arange(count), 2.0).norms(), 2.0)


def test_some_canaries_alone_keep_their_directions() -> None:
    lines = Directions(LAYOUT, 20, np.random.default_rng(0))
    some = lines.updates(np.array([3, 17]), 1.0)
    everyone = lines.updates(np.arange(20), 1.0)
    np.testing.assert_allclose(some.vector(1, LAYOUT), everyone.vector(17, LAYOUT))


def test_spread_gives_every_block_its_norm() -> None:
    vector = spread(LAYOUT, np.random.default_rng(0), 2.0)
    np.testing.assert_allclose(stacked(LAYOUT, vector[None], np.ones(1)).vector(0, LAYOUT), vector)
    assert np.linalg.norm(vector) == pytest.approx(2.0 * math.sqrt(3))
