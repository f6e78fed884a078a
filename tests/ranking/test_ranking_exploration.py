"""Exploration: propensities are what really happens, and inverse propensities evaluate another policy."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from ranking_helpers import catalogue, factors, item_index, listed

from fedrec.core.errors import DataError
from fedrec.ranking.diversity import Mmr, unit
from fedrec.ranking.exploration import EpsilonGreedy, Exploration, LinUcb, Thompson, Uncertainty
from fedrec.ranking.filters import Apart, AtMost
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.pipeline import Ranked, RecommendationRequest

POLICIES = [
    EpsilonGreedy(0.4, 1.0),
    Thompson(0.8, 1.0, width=1.5, draws=16, floor=0.3),
    LinUcb(0.5, 1.0, width=20.0, floor=0.3),
]
FOUR = ("i20", "i21", "i22", "i23")


def mean_and_error(values: Any) -> tuple[float, float]:
    return float(np.mean(values)), max(float(np.std(values)) / len(values) ** 0.5, 1e-9)


def weights_by_list(request: RecommendationRequest, rounds: int) -> dict[tuple[int, ...], np.ndarray]:
    """For each list that was seen, 1[shown] / propensity of every round."""
    where, found = item_index(), {}
    for seed in range(rounds):
        made = listed(where, request, seed=seed)
        found.setdefault(made.items, np.zeros(rounds))[seed] = 1 / float(np.prod(made.propensities))
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_propensities_are_what_happens(policy: Exploration) -> None:
    """Lists of two from four candidates: for each of the twelve, 1[shown] / propensity has mean 1."""
    found = weights_by_list(RecommendationRequest(n=2, candidates=FOUR, exploration=policy), 3000)
    assert len(found) == 12
    for values in found.values():
        mean, error = mean_and_error(values)
        assert abs(mean - 1) < 5 * error


@pytest.mark.parametrize("policy", POLICIES)
def test_propensities_are_what_happens_under_the_bound(policy: Exploration) -> None:
    """Half of a list of two: lists with two other items than the first in order never come; of the rest, mean 1."""
    found = weights_by_list(
        RecommendationRequest(n=2, candidates=FOUR, exploration=dataclasses.replace(policy, most=0.5)), 3000
    )
    order = listed(item_index(), RecommendationRequest(n=4, candidates=FOUR)).items
    first = {
        pair: (pair[0] != order[0]) + (pair[1] != next(item for item in order if item != pair[0]))
        for pair in itertools.permutations(order, 2)
    }
    assert set(found) == {pair for pair, others in first.items() if others <= 1}
    for values in found.values():
        mean, error = mean_and_error(values)
        assert abs(mean - 1) < 5 * error


def test_propensities_are_what_happens_with_rules_and_diversity() -> None:
    request = RecommendationRequest(
        n=2,
        candidates=[*FOUR, "i25", "i26"],
        rules=[AtMost("drama", 1), Apart("comedy", 2)],
        diversity=Mmr(),
        exploration=EpsilonGreedy(0.6, 1.0),
    )
    for values in weights_by_list(request, 3000).values():
        mean, error = mean_and_error(values)
        assert abs(mean - 1) < 5 * error


def estimated(
    lists: list[Ranked], clicks: dict[int, float], target: int, wrong: float | None
) -> tuple[float, float]:
    """Inverse propensity estimate of the click rate of showing `target` alone, and its standard error."""
    rng = np.random.default_rng(1)
    gains = [
        (made.items[0] == target)
        * float(rng.random() < clicks[made.items[0]])
        / (made.propensities[0] if wrong is None else wrong)
        for made in lists
    ]
    return mean_and_error(gains)


@pytest.mark.parametrize("policy", POLICIES)
def test_logged_clicks_evaluate_another_policy(policy: Exploration) -> None:
    """Planted click rates; the target policy always shows one item, which the logging policy shows sometimes.

    With wrong propensities (the chance of exploring, whoever is shown) the estimate is off, and this test sees it.
    """
    where = item_index()
    by_score = listed(where, RecommendationRequest(n=4, candidates=FOUR)).items
    clicks = dict(zip(by_score, (0.2, 0.6, 0.4, 0.5), strict=True))
    request = RecommendationRequest(n=1, candidates=FOUR, exploration=policy)
    lists = [listed(where, request, seed=seed) for seed in range(6000)]
    for target in by_score:
        mean, error = estimated(lists, clicks, target, None)
        assert abs(mean - clicks[target]) < 4.5 * error
    mean, error = estimated(lists, clicks, by_score[1], policy.rate)
    assert abs(mean - clicks[by_score[1]]) > 6 * error


@pytest.mark.parametrize("policy", [Thompson(), LinUcb(), EpsilonGreedy()])
def test_every_item_of_the_short_list_can_be_seen(policy: Exploration) -> None:
    """At the first place, also those that the chooser would never take."""
    request = RecommendationRequest(
        n=1, candidates=FOUR, exploration=dataclasses.replace(policy, rate=1.0, most=1.0)
    )
    seen = {listed(item_index(), request, seed=seed).items for seed in range(600)}
    assert len(seen) == 4


def test_exploration_is_bounded() -> None:
    shares = [
        listed(
            item_index(), RecommendationRequest(n=12, exploration=EpsilonGreedy(1.0, 0.25)), seed=seed
        ).sources.count("exploration")
        for seed in range(30)
    ]
    assert set(shares) == {3}


@pytest.mark.parametrize("policy", [EpsilonGreedy(0.0), EpsilonGreedy(1.0, 0.0), Thompson(rate=0.0)])
def test_none_is_none(policy: Exploration) -> None:
    plain, made = (
        listed(item_index(), RecommendationRequest()),
        listed(item_index(), RecommendationRequest(exploration=policy)),
    )
    assert made == plain


def test_more_history_less_doubt() -> None:
    """Draws of tastes have the covariance V A^-1 V', bounds its diagonal; both by way of a small matrix."""
    rng = np.random.default_rng(0)
    vectors, seen = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(4, 8)))
    known = Uncertainty.of(rng.random(5), vectors, seen)
    expected = vectors @ np.linalg.inv(np.eye(8) + seen.T @ seen) @ vectors.T
    assert known.widths() == pytest.approx(np.sqrt(expected.diagonal()))
    draws = known.draws(40_000, rng)
    spread = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / len(draws))
    assert np.all(np.abs(np.cov(draws.T) - expected) < 5 * spread)
    nothing = Uncertainty.of(rng.random(5), vectors, np.zeros((0, 8)))
    assert nothing.widths() == pytest.approx(np.ones(5)) and nothing.draws(3, rng).shape == (3, 5)


def test_ucb_looks_where_the_history_does_not() -> None:
    """Of two items, the one unlike the history has the wider bound."""
    table = np.concatenate([np.eye(3), [[0.999, 0, 0], [0, 0.001, 0]]])
    where = ItemIndex(factors(table), catalogue(5))
    request = RecommendationRequest(
        n=1, candidates=["i3", "i2"], exploration=LinUcb(1.0, 1.0, width=50.0, floor=1e-9)
    )
    assert listed(where, RecommendationRequest(n=1, candidates=["i3", "i2"]), history=(0,)).items == (3,)
    assert listed(where, request, history=(0,)).items == (2,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EpsilonGreedy(2.0),
        lambda: EpsilonGreedy(float("nan")),
        lambda: Thompson(draws=0),
        lambda: LinUcb(width=np.inf),
        lambda: Thompson(floor=0.0),
        lambda: LinUcb(most=-0.1),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataError):
        make()
