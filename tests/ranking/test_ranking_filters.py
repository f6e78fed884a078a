"""Business rules hold in every list, and the list is the best that keeps them place by place."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_helpers import GENRES, Fixed, catalogue, item_index, limits, listed, pins

from fedrec.core.errors import DataError
from fedrec.ranking.exploration import EpsilonGreedy
from fedrec.ranking.filters import Apart, AtMost, Boost, Pin, Rule
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.items import Items
from fedrec.ranking.pipeline import RecommendationRequest


def by_hand(where: ItemIndex, scores: np.ndarray, n: int, rules: list[Rule], pinned: list[Pin]) -> list[int]:
    """Place by place the best item, of all of them, that the rules and the pins to come allow."""
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], -where.items.popularity[k], k))
    fixed = {pin.place - 1: int(pin.item[1:]) for pin in pinned if pin.place <= n}
    owner = dict(fixed)  # by place, also of pins to come

    def may(item: int, place: int) -> bool:
        for rule in rules:
            if not isinstance(rule, AtMost | Apart) or rule.category not in where.items.categories[item]:
                continue
            at = [p for p, i in owner.items() if rule.category in where.items.categories[i]]
            if (
                len(at) >= rule.count
                if isinstance(rule, AtMost)
                else any(abs(p - place) < rule.places for p in at)
            ):
                return False
        return True

    for place in range(n):
        if place in owner:
            continue
        found = next((k for k in order if k not in owner.values() and may(k, place)), None)
        if found is None:
            later = [p for p in sorted(fixed) if p > place and p in owner]
            if not later:
                return [owner[p] for p in range(place)]
            found = owner.pop(later[0])
        owner[place] = found
    return [owner[p] for p in range(n)]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 30),
    st.lists(limits, max_size=4),
    pins(places=35),
    st.sampled_from([3, 1000]),
    st.sampled_from([66, 400]),
)
def test_the_list_is_the_best_that_keeps_the_rules(
    seed: int, n: int, rules: list[Rule], pinned: list[Pin], levels: int, size: int
) -> None:
    """Also where the short list is one of dramas, and all else lies far below."""
    items = catalogue(size)
    drama = np.array(["drama" in names for names in items.categories])
    scores = np.random.default_rng(seed).integers(0, levels, size) + 1e4 * drama
    where = ItemIndex(Fixed(scores), items)
    made = listed(
        where, RecommendationRequest(n=n, exclude_seen=False, rules=[*rules, *pinned]), history=(0,)
    )
    assert list(made.items) == by_hand(where, scores, n, rules, pinned)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 99), st.lists(limits, min_size=1, max_size=4), pins(places=12), st.booleans())
def test_rules_hold_with_pins_and_coins(
    seed: int, rules: list[Rule], pinned: list[Pin], explore: bool
) -> None:
    """Wherever pins alone do not break them, and none had to move up."""
    exploration = EpsilonGreedy(1.0, 1.0) if explore else None
    made = listed(
        item_index(),
        RecommendationRequest(n=12, rules=[*rules, *pinned], exploration=exploration),
        history=(1,),
        seed=seed,
    )
    assert len(set(made.items)) == len(made.items)
    genres = [item_index().items.categories[k] for k in made.items]
    fixed = {k for k, source in enumerate(made.sources) if source == "pinned"}
    asked = {pin.place - 1: int(pin.item[1:]) for pin in pinned}
    moved = any(asked.get(k) != made.items[k] for k in fixed)
    for rule in rules:
        places = [k for k, own in enumerate(genres) if getattr(rule, "category", None) in own]
        if isinstance(rule, AtMost):
            assert len(places) <= max(rule.count, len(fixed & set(places)))
        if isinstance(rule, Apart) and not moved:
            assert all(b - a >= rule.places or {a, b} <= fixed for a, b in itertools.pairwise(places))


def test_pins_stand_where_they_are_wanted() -> None:
    made = listed(
        item_index(), RecommendationRequest(n=5, rules=[Pin("i40", 2), Pin("i41", 5), Pin("none", 1)])
    )
    assert made.items[1] == 40 and made.items[4] == 41
    assert made.sources[1] == "pinned" and len(set(made.items)) == 5
    denied = listed(item_index(), RecommendationRequest(n=5, exclude=["i40"], rules=[Pin("i40", 2)]))
    assert 40 not in denied.items and len(denied.items) == 5
    with pytest.raises(DataError, match="pinned already"):
        listed(item_index(), RecommendationRequest(rules=[Pin("i40", 2), Pin("i41", 2)]))
    with pytest.raises(DataError, match="pinned already"):
        listed(item_index(), RecommendationRequest(rules=[Pin("i40", 2), Pin("i40", 3)]))


def test_a_pin_below_the_list_is_an_item_like_any() -> None:
    plain = listed(item_index(), RecommendationRequest(n=5))
    pinned = listed(item_index(), RecommendationRequest(n=5, rules=[Pin(f"i{plain.items[0]}", 6)]))
    assert pinned.items == plain.items and set(pinned.sources) == {"model"}


def test_a_pin_moves_up_rather_than_being_lost() -> None:
    made = listed(
        item_index(), RecommendationRequest(n=9, candidates=["i2", "i3", "i4"], rules=[Pin("i3", 7)])
    )
    assert len(made.items) == 3 and made.items[2] == 3 and made.sources[2] == "pinned"


def test_a_pin_that_moved_up_counts_once() -> None:
    """While hits must wait, pins fill their places; the second hit is fun too, and there is room for one more."""
    items = Items.of(["a", "b", "x", "y"], categories=[("hit",), ("hit", "fun"), ("fun",), ()])
    where = ItemIndex(Fixed([4.0, 3.0, 2.0, 1.0]), items)
    rules = [Apart("hit", 3), AtMost("fun", 2), Pin("x", 8), Pin("y", 9)]
    assert listed(where, RecommendationRequest(n=9, exclude_seen=False, rules=rules)).items == (0, 2, 3, 1)


def test_a_pin_counts_before_it_stands() -> None:
    """The best item is of the pinned one's genre, of which one may appear: it gives way."""
    items = Items.of(["a", "b", "c"], categories=[("hit",), (), ("hit",)])
    where = ItemIndex(Fixed([3.0, 2.0, 1.0]), items)
    request = RecommendationRequest(n=3, exclude_seen=False, rules=[AtMost("hit", 1), Pin("c", 2)])
    assert listed(where, request).items == (1, 2)
    apart = RecommendationRequest(n=3, exclude_seen=False, rules=[Apart("hit", 2), Pin("c", 2)])
    assert listed(where, apart).items == (1, 2)


def test_rules_look_further_than_the_short_list() -> None:
    """All good items are of one genre of which only one may appear: the rest comes from far below."""
    n = 5000
    genre = np.where(np.arange(n) < 4500, "hit", "other")
    items = Items.of([f"i{k}" for k in range(n)], categories=[(name,) for name in genre.tolist()])
    where = ItemIndex(Fixed(-np.arange(n)), items)
    made = listed(
        where, RecommendationRequest(n=10, rules=[AtMost("hit", 1), Apart("other", 2)]), history=(0,)
    )
    assert made.items == (1, 4500)
    rules = [AtMost("hit", 3), Apart("hit", 4)]
    assert listed(where, RecommendationRequest(n=10, rules=rules), history=(0,)).items == (
        *(1, 4500, 4501, 4502, 2),
        *(4503, 4504, 4505, 3, 4506),
    )


def test_boosts_move_by_standard_deviations() -> None:
    where = ItemIndex(Fixed(np.arange(10.0)), catalogue(10))
    made = listed(
        where,
        RecommendationRequest(
            n=10, exclude_seen=False, rules=[Boost(-1.5, item="i9"), Boost(2.0, item="i0")]
        ),
    )
    score = dict(zip(made.items, made.scores, strict=True))
    assert score[9] == pytest.approx(9 - 1.5 * np.std(np.arange(10)), rel=1e-5)
    assert score[0] == pytest.approx(2 * np.std(np.arange(10)), rel=1e-5) and score[5] == 5.0
    buried = listed(item_index(), RecommendationRequest(n=60, rules=[Boost(-50, category="drama")]))
    drama = [k for k, item in enumerate(buried.items) if "drama" in item_index().items.categories[item]]
    assert drama == list(range(len(buried.items) - len(drama), len(buried.items)))
    flat = ItemIndex(Fixed(np.ones(4)), catalogue(4))
    assert (
        listed(flat, RecommendationRequest(n=4, exclude_seen=False, rules=[Boost(1.0, item="i3")])).items[0]
        == 3
    )


def test_one_of_each_genre() -> None:
    made = listed(item_index(), RecommendationRequest(n=20, rules=[AtMost(name, 1) for name in GENRES]))
    found = [name for item in made.items for name in item_index().items.categories[item]]
    assert sorted(found) == sorted(set(found)) and 2 <= len(made.items) <= 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: AtMost("a", -1),
        lambda: Apart("a", 0),
        lambda: Apart("a", 10**9),
        lambda: Pin("a", 0),
        lambda: Boost(1.0),
        lambda: Boost(1.0, "a", "b"),
        lambda: Boost(np.inf, item="a"),
    ],
)
def test_rules_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataError):
        make()
