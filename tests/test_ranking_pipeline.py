"""Lists: what must not appear never does, what rules ask for holds, propensities are what really happens."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import DataError
from fedrec.ranking.best import best
from fedrec.ranking.cold import add_items
from fedrec.ranking.diversity import Dpp, Mmr, unit
from fedrec.ranking.exploration import EpsilonGreedy, Exploration, LinUcb, Thompson
from fedrec.ranking.factors import Factors
from fedrec.ranking.filters import Apart, AtMost, Boost, Pin
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.pipeline import Ranked, Wanted, rank
from fedrec.ranking.serving import History
from fedrec.ranking.shelf import DAY, Shelf
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.top_n import top_n

GENRES = ("action", "comedy", "drama", "family")


def shelf(n: int = 60, d: int = 6, seed: int = 0, popularity: bool = True) -> Shelf:
    rng = np.random.default_rng(seed)
    items = Items.of(
        [f"i{k}" for k in range(n)],
        [f"Film {k}" for k in range(n)],
        [{GENRES[k % 4], GENRES[(k // 3) % 4]} for k in range(n)],
        rng.random(n).astype(np.float32) if popularity else None,
        np.where(np.arange(n) % 2, 1000 * DAY - np.arange(n) * DAY, 0.0),
    )
    table = FloatTable(rng.normal(size=(n, d)).astype(np.float32))
    return Shelf(Factors(table, Ridge(unobserved_weight=0.1, reg=0.01)), items)


def listed(
    where: Shelf, wanted: Wanted, history: tuple[int, ...] = (1, 5, 9), seed: int = 0, now: float = 0.0
) -> Ranked:
    ids = [f"i{k}" for k in history]
    person = where.model.fold_in(History.of(where.items, ids))
    return rank(where, person, person.history.item, wanted, rng=np.random.default_rng(seed), now=now)


values = st.floats(-3, 3, width=32) | st.sampled_from([-np.inf, np.nan, 0.0, 1.0])


@settings(max_examples=300)
@given(st.lists(values, min_size=1, max_size=40), st.integers(0, 50))
def test_best_is_top_n_of_one_person(scores: list[float], n: int) -> None:
    row = np.array(scores, dtype=np.float32)
    found = best(row, n)
    if n == 0:
        assert len(found) == 0
        return
    with np.errstate(invalid="ignore"):
        expected, _ = top_n(row[None, :], n)
    assert found.tolist() == [item for item in expected[0].tolist() if item >= 0]


def test_without_wishes_it_is_the_order_by_score() -> None:
    where = shelf()
    made = listed(where, Wanted(n=15))
    person = where.model.fold_in(History.of(where.items, ["i1", "i5", "i9"]))
    scores = where.model.scores(person)
    scores[[1, 5, 9]] = -np.inf
    assert list(made.items) == best(scores, 15).tolist()
    assert made.propensities == (1.0,) * 15 and set(made.sources) == {"model"}


categories = st.lists(st.sampled_from(GENRES), max_size=2, unique=True)
ids = st.lists(st.integers(0, 70).map("i{}".format), max_size=12, unique=True)
rules = st.lists(
    st.builds(AtMost, st.sampled_from(GENRES), st.integers(0, 4))
    | st.builds(Apart, st.sampled_from(GENRES), st.integers(1, 3))
    | st.builds(Boost, st.floats(-2, 2), st.sampled_from(GENRES)),
    max_size=3,
)
wishes = st.builds(
    Wanted,
    n=st.integers(1, 25),
    candidates=st.none() | ids,
    exclude=ids,
    exclude_seen=st.booleans(),
    allow=categories,
    deny=categories,
    rules=rules,
    diversity=st.none() | st.builds(Mmr, st.floats(0, 1)) | st.builds(Dpp, st.floats(0, 1)),
    exploration=st.none()
    | st.just(EpsilonGreedy(0.5, 1.0))
    | st.just(Thompson(1.0, 0.5))
    | st.just(LinUcb()),
    freshness=st.floats(-1, 1),
)


@settings(max_examples=300, deadline=None)
@given(wishes, st.lists(st.integers(0, 59), max_size=6, unique=True), st.integers(0, 99))
def test_whatever_is_asked_for_holds(wanted: Wanted, history: list[int], seed: int) -> None:
    where = shelf()
    made = listed(where, wanted, tuple(history), seed, now=1000 * DAY)
    names = [f"i{k}" for k in made.items]
    genres = [set(where.items.categories[k]) for k in made.items]
    assert len(set(names)) == len(names) <= wanted.n
    assert not set(names) & set(wanted.exclude)
    assert not wanted.exclude_seen or not set(made.items) & set(history)
    assert wanted.candidates is None or set(names) <= set(wanted.candidates)
    assert all(not own & set(wanted.deny) and (not wanted.allow or own & set(wanted.allow)) for own in genres)
    for rule in wanted.rules:
        places = [k for k, own in enumerate(genres) if getattr(rule, "category", None) in own]
        assert not isinstance(rule, AtMost) or len(places) <= rule.count
        assert not isinstance(rule, Apart) or all(b - a >= rule.places for a, b in itertools.pairwise(places))
    assert all(0 < chance <= 1 for chance in made.propensities)
    assert listed(where, wanted, tuple(history), seed, now=1000 * DAY) == made
    if not wanted.rules:
        blocked = set(wanted.exclude) | ({f"i{k}" for k in history} if wanted.exclude_seen else set())
        open_items = [
            name
            for name, own in zip(where.items.ids, map(set, where.items.categories), strict=True)
            if name not in blocked
            and (wanted.candidates is None or name in wanted.candidates)
            and not own & set(wanted.deny)
            and (not wanted.allow or own & set(wanted.allow))
        ]
        assert len(names) == min(wanted.n, len(open_items))


def test_pins_stand_where_they_are_wanted() -> None:
    made = listed(shelf(), Wanted(n=5, rules=[Pin("i40", 2), Pin("i41", 5), Pin("none", 1)]))
    assert made.items[1] == 40 and made.items[4] == 41
    assert made.sources[1] == "pinned" and len(set(made.items)) == 5
    denied = listed(shelf(), Wanted(n=5, exclude=["i40"], rules=[Pin("i40", 2)]))
    assert 40 not in denied.items and len(denied.items) == 5
    with pytest.raises(DataError, match="pinned already"):
        listed(shelf(), Wanted(rules=[Pin("i40", 2), Pin("i41", 2)]))


def test_rules_look_further_than_the_short_list() -> None:
    """All good items are of one category of which only one may appear: the rest comes from far below."""
    n = 2000
    table = np.zeros((n, 2), np.float32)
    table[:1500, 0], table[1500:, 0] = 1.0, 0.5
    items = Items.of(
        [f"i{k}" for k in range(n)], categories=[("hit",) if k < 1500 else ("other",) for k in range(n)]
    )
    where = Shelf(Factors(FloatTable(table), Ridge(0.1, 0.01)), items)
    made = listed(where, Wanted(n=10, rules=[AtMost("hit", 1)]), history=(0,))
    assert sum(item < 1500 for item in made.items) == 1 and len(made.items) == 10


def test_boosts_move_by_standard_deviations() -> None:
    plain, lifted = (
        listed(shelf(), Wanted(n=60)),
        listed(shelf(), Wanted(n=60, rules=[Boost(50, item="i40")])),
    )
    assert lifted.items[0] == 40
    buried = listed(shelf(), Wanted(n=60, rules=[Boost(-50, category="drama")]))
    drama = [k for k, item in enumerate(buried.items) if "drama" in shelf().items.categories[item]]
    assert drama == list(range(len(buried.items) - len(drama), len(buried.items)))
    assert set(plain.items) == set(lifted.items)


def test_nobody_known_gets_what_is_popular_and_new() -> None:
    where = shelf()
    made = listed(where, Wanted(n=10), history=())
    assert list(made.items) == best(where.items.popularity, 10).tolist() and set(made.sources) == {"popular"}
    fresh = listed(where, Wanted(n=10, freshness=1e5), history=(), now=1000 * DAY)
    assert list(fresh.items)[:3] == [1, 3, 5] and "fresh" in fresh.sources
    nothing = listed(shelf(popularity=False), Wanted(n=10), history=())
    assert len(nothing.items) == 10


def test_newness_halves_in_its_half_life() -> None:
    newness = shelf().newness(1000 * DAY, 30.0)
    assert newness[1] == pytest.approx(2 ** (-1 / 30)) and newness[31] == pytest.approx(2 ** (-31 / 30))
    assert newness[0] == 0.0
    assert shelf().newness(0.0, 30.0).max() == 1.0  # a clock that is behind makes nothing newer than new


def test_items_that_came_later_say_so() -> None:
    before = shelf(popularity=False)
    model, items = add_items(before.model, before.items, ["new"], ["Film 5"], [before.items.categories[5]])
    made = listed(Shelf(model, items), Wanted(n=61))
    assert made.sources[made.items.index(60)] == "similar content"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deny": ["dramma"]}, "did you mean 'drama'"),
        ({"allow": ["zzzz"]}, "there are"),
        ({"rules": [AtMost("dramma", 1)]}, "did you mean"),
        ({"n": 0}, "list of 0"),
        ({"n": 10**9}, "list of"),
        ({"freshness": np.nan}, "finite"),
        ({"exclude": "i40"}, "not one text"),
    ],
)
def test_wishes_that_cannot_be_are_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        listed(shelf(), Wanted(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AtMost("a", -1),
        lambda: Apart("a", 0),
        lambda: Pin("a", 0),
        lambda: Boost(1.0),
        lambda: Boost(np.inf, item="a"),
        lambda: Mmr(1.5),
        lambda: Dpp(-0.1),
        lambda: EpsilonGreedy(2.0),
        lambda: Thompson(draws=0),
        lambda: LinUcb(width=np.inf),
        lambda: Thompson(floor=0.0),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataError):
        make()


def test_unknown_candidates_are_told() -> None:
    made = listed(shelf(), Wanted(candidates=["i2", "nobody", "i3"]))
    assert set(made.items) == {2, 3} and made.unknown == ("nobody",)


# Diversity: against brute force, and a planted cluster.


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Ten near copies with the best scores, and five different items a little below."""
    rng = np.random.default_rng(0)
    cluster = np.tile(rng.normal(size=8), (10, 1)) + 0.01 * rng.normal(size=(10, 8))
    vectors = unit(np.concatenate([cluster, rng.normal(size=(5, 8))]))
    return np.concatenate([np.linspace(1, 0.95, 10), np.linspace(0.9, 0.8, 5)]), vectors


@pytest.mark.parametrize("diversity", [Mmr(0.5), Dpp(0.7)])
def test_a_cluster_is_broken_up(diversity: Mmr | Dpp) -> None:
    scores, vectors = planted()
    assert sum(k < 10 for k in diversity.order(scores, vectors, 5)) <= 2
    assert type(diversity)(0.0).order(scores, vectors, 5) == [0, 1, 2, 3, 4]


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_mmr_is_its_definition(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    scores, vectors = rng.random(8), unit(rng.normal(size=(8, 3)))
    scaled = (scores - scores.min()) / np.ptp(scores)
    chosen: list[int] = []
    for _ in range(5):
        value = {
            k: (1 - weight) * scaled[k]
            - weight * max([float(vectors[k] @ vectors[j]) for j in chosen], default=0)
            for k in range(8)
            if k not in chosen
        }
        chosen.append(max(value, key=lambda k: value[k]))
    assert Mmr(weight).order(scores, vectors, 5) == chosen


@given(st.integers(0, 10_000))
def test_dpp_takes_the_greatest_determinant_at_each_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, vectors = rng.random(7), unit(rng.normal(size=(7, 5)))
    kernel = Dpp(0.5).kernel(scores, vectors)
    chosen = Dpp(0.5).order(scores, vectors, 4)
    for step in range(1, 5):
        det = {
            k: np.linalg.det(kernel[np.ix_([*chosen[: step - 1], k], [*chosen[: step - 1], k])])
            for k in range(7)
            if k not in chosen[: step - 1]
        }
        assert det[chosen[step - 1]] >= max(det.values()) * (1 - 1e-6)


# Exploration: propensities are frequencies, and inverse propensities judge another policy.

POLICIES = [
    EpsilonGreedy(0.4, 1.0),
    Thompson(0.8, 1.0, width=1.5, draws=16, floor=0.3),
    LinUcb(0.5, 0.7, width=20.0, floor=0.3),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_propensities_are_what_happens(policy: Exploration) -> None:
    """Lists of two from four candidates: for each list, 1[shown] / propensity has mean 1."""
    where = shelf()
    wanted = Wanted(n=2, candidates=["i20", "i21", "i22", "i23"], exploration=policy)
    weights: dict[tuple[int, ...], list[float]] = {}
    rounds = 4000
    for seed in range(rounds):
        made = listed(where, wanted, seed=seed)
        weights.setdefault(made.items, []).append(1 / float(np.prod(made.propensities)))
    assert len(weights) == 12
    for seen in weights.values():
        gains = np.array(seen + [0.0] * (rounds - len(seen)))
        assert abs(gains.mean() - 1) < 5 * gains.std() / rounds**0.5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("honest", [True, False])
def test_logged_clicks_judge_another_policy(policy: Exploration, honest: bool) -> None:
    """Planted click rates; the target always shows one item that the logging policy shows sometimes.

    With wrong propensities (the chance of exploring, whoever is shown) the estimate is off, and this test sees it.
    """
    where = shelf()
    candidates = ["i20", "i21", "i22", "i23"]
    by_score = [f"i{k}" for k in listed(where, Wanted(n=4, candidates=candidates)).items]
    click = dict(zip(by_score, (0.2, 0.6, 0.4, 0.5), strict=True))
    target = by_score[1]
    rng = np.random.default_rng(1)
    gains = []
    for seed in range(6000):
        made = listed(where, Wanted(n=1, candidates=candidates, exploration=policy), seed=seed)
        shown = f"i{made.items[0]}"
        chance = made.propensities[0] if honest else policy.rate
        gains.append((shown == target) * float(rng.random() < click[shown]) / chance)
    error = abs(float(np.mean(gains)) - click[target]) / (float(np.std(gains)) / len(gains) ** 0.5)
    assert error < 4 if honest else error > 6


def test_exploration_is_bounded() -> None:
    explored = [
        listed(shelf(), Wanted(n=12, exploration=EpsilonGreedy(1.0, 0.25)), seed=seed).sources.count(
            "exploration"
        )
        for seed in range(30)
    ]
    assert max(explored) == 3 == min(explored)


def test_ucb_looks_where_the_history_does_not() -> None:
    """Equal scores: the item unlike the history has the wider bound."""
    table = np.eye(3, dtype=np.float32)
    table = np.concatenate([table, table[:1] * 0.999, table[1:2] * 0.001 + table[2:3] * 0.0])
    where = Shelf(Factors(FloatTable(table), Ridge(1.0, 1.0)), Items.of([f"i{k}" for k in range(5)]))
    wanted = Wanted(n=1, candidates=["i3", "i2"], exploration=LinUcb(1.0, 1.0, width=50.0, floor=1e-9))
    assert listed(where, wanted, history=(0,)).items == (2,)
