"""Lists: what must not appear never does, the order is the one by score, labels and lengths are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_helpers import (
    GENRES,
    NOW,
    Fixed,
    boosts,
    catalogue,
    categories,
    diversities,
    explorations,
    factors,
    ids,
    item_index,
    limits,
    listed,
    user_of,
)

from fedrec.core.errors import DataError
from fedrec.ranking._cold import Neighbours, WithColdItems, add_items
from fedrec.ranking.diversity import Dpp, Mmr
from fedrec.ranking.exploration import EpsilonGreedy, LinUcb, Thompson
from fedrec.ranking.filters import AtMost, Boost, Pin
from fedrec.ranking.item_index import DAY, ItemIndex
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.items import Items
from fedrec.ranking.pipeline import RecommendationRequest, rank
from fedrec.ranking.popular import Popular, Selected
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.top_n import top_n
from fedrec.ranking.top_scores import top_k
from fedrec.ranking.weights import DenseWeights, SparseWeights

values = st.floats(-3, 3, width=32) | st.sampled_from([-np.inf, np.nan, 0.0, 1.0])


@settings(max_examples=300)
@given(st.lists(values, min_size=1, max_size=40), st.integers(0, 50))
def test_best_is_top_n_of_one_user(scores: list[float], n: int) -> None:
    row = np.array(scores, dtype=np.float32)
    found = top_k(row, n)
    if n == 0:
        assert len(found) == 0
        return
    expected, _ = top_n(row[None, :], n)
    assert found.tolist() == [item for item in expected[0].tolist() if item >= 0]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 5000),
    st.integers(1, 60),
    st.sampled_from([2, 50, 10**6]),
    st.sampled_from([0.0, 0.2, 0.999]),
    st.booleans(),
)
def test_best_of_many_with_ties_nan_and_closed_items(
    seed: int, size: int, n: int, levels: int, closed: float, then: bool
) -> None:
    """Long arrays take another way than short ones; few levels make ties, which the second key decides."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, size).astype(np.float32)
    scores[rng.random(size) < closed] = -np.inf
    scores[rng.random(size) < closed / 2] = np.nan
    second = rng.integers(0, 3, size).astype(np.float32)
    usable = np.flatnonzero(scores > -np.inf)
    keys = (usable, -second[usable], -scores[usable]) if then else (usable, -scores[usable])
    assert top_k(scores, n, second if then else None).tolist() == usable[np.lexsort(keys)][:n].tolist()


def test_without_constraints_it_is_the_order_by_score() -> None:
    where = item_index()
    made = listed(where, RecommendationRequest(n=15))
    scores = where.model.scores(user_of(where, (1, 5, 9)))
    scores[[1, 5, 9]] = -np.inf
    places, expected = top_n(scores[None, :], 15)
    assert list(made.items) == places[0].tolist() and list(made.scores) == expected[0].tolist()
    assert made.propensities == (1.0,) * 15 and set(made.sources) == {"model"}


requests = st.builds(
    RecommendationRequest,
    n=st.integers(1, 25),
    candidates=st.none() | ids,
    exclude=ids,
    exclude_seen=st.booleans(),
    allow=categories,
    deny=categories,
    rules=st.lists(limits | boosts, max_size=3),
    diversity=diversities,
    exploration=explorations,
    freshness=st.floats(-1, 1),
)


@settings(max_examples=300, deadline=None)
@given(requests, st.lists(st.integers(0, 59), max_size=6, unique=True), st.integers(0, 99))
def test_whatever_is_asked_for_holds(request: RecommendationRequest, history: list[int], seed: int) -> None:
    where = item_index()
    made = listed(where, request, tuple(history), seed)
    names = [f"i{k}" for k in made.items]
    blocked = set(request.exclude) | ({f"i{k}" for k in history} if request.exclude_seen else set())
    usable = {
        name
        for name, own in zip(where.items.ids, map(set, where.items.categories), strict=True)
        if name not in blocked
        and (request.candidates is None or name in request.candidates)
        and not own & set(request.deny)
        and (not request.allow or own & set(request.allow))
    }
    assert len(set(names)) == len(names) <= request.n and set(names) <= usable
    if not any(hasattr(rule, "count") or hasattr(rule, "places") for rule in request.rules):
        assert len(names) == min(request.n, len(usable))
    assert len(made.scores) == len(made.propensities) == len(made.sources) == len(names)
    assert all(0 < chance <= 1 for chance in made.propensities) and np.isfinite(made.scores).all()
    assert request.exploration is not None or set(made.propensities) <= {1.0}
    assert listed(where, request, tuple(history), seed) == made


def test_vectors_of_item_item_models_are_cells_of_their_weights() -> None:
    """Sparse, dense, in 8 bits, and of new items, which have the mean of their neighbours."""
    rng = np.random.default_rng(0)
    values = rng.random((40, 40)).astype(np.float32) * (rng.random((40, 40)) < 0.3)
    some = rng.permutation(40)[:15]
    dense = DenseWeights(FloatTable(values))
    for weights in (dense, dense.pruned(40)):
        assert np.array_equal(weights.features(some), values[np.ix_(some, some)])
        coarse = weights.quantised().features(some)
        assert coarse == pytest.approx(values[np.ix_(some, some)], abs=float(values.max()) / 127)
    near = Neighbours(np.array([[3, 8]]), np.array([[0.25, 0.75]], np.float32))
    table = np.eye(40, dtype=np.float32)
    late = WithColdItems(factors(table), near).vectors(np.array([8, 40, 3]))
    assert late == pytest.approx(np.stack([table[8], 0.25 * table[3] + 0.75 * table[8], table[3]]))


def test_no_coin_is_thrown_without_exploration() -> None:
    where, rng = item_index(), np.random.default_rng(0)
    before = rng.bit_generator.state
    user = user_of(where, (1,))
    rank(
        where,
        user,
        user.history.item,
        RecommendationRequest(diversity=Mmr(), freshness=1.0),
        rng=rng,
        now=NOW,
    )
    assert rng.bit_generator.state == before


def test_no_one_known_gets_what_is_popular_and_new() -> None:
    where = item_index()
    made = listed(where, RecommendationRequest(n=10), history=())
    assert list(made.items) == top_k(where.items.popularity, 10).tolist() and set(made.sources) == {"popular"}
    fresh = listed(where, RecommendationRequest(n=10, freshness=1e5), history=())
    assert list(fresh.items)[:3] == [1, 3, 5] and "fresh" in fresh.sources
    request = RecommendationRequest(n=10, diversity=Mmr(0.9), exploration=Thompson(1.0, 1.0))
    assert listed(where, request, history=()).items != made.items
    assert len(listed(item_index(popularity=False), RecommendationRequest(n=10), history=()).items) == 10


def test_a_history_that_no_model_can_use_is_as_none() -> None:
    """One of items that came after the training, or of items that a selection left out."""
    before = item_index()
    model, items = add_items(before.model, before.items, ["i60"], ["Film 60"], [("drama",)])
    late = ItemIndex(model, items)
    chosen = ItemIndex(Selected(before.model, np.arange(60), np.zeros(70)), catalogue(70))
    for where, history in ((late, (60,)), (chosen, (65,))):
        made = listed(where, RecommendationRequest(n=10, exclude_seen=False), history)
        assert list(made.items) == top_k(where.items.popularity, 10).tolist()
        assert "model" not in made.sources
        assert "model" in listed(where, RecommendationRequest(n=10), (*history, 5)).sources


def test_among_equal_scores_the_more_popular_goes_first() -> None:
    """A model whose only weight is from item 0 to item 3 knows nothing of the others."""
    n = 50
    weights = SparseWeights(
        np.array([0] + [1] * n), np.array([3], dtype=np.int32), np.array([1.0], dtype=np.float32)
    )
    items = catalogue(n)
    made = listed(ItemIndex(ItemItem(weights), items), RecommendationRequest(n=6), history=(0,))
    rest = items.popularity.copy()
    rest[[0, 3]] = -np.inf
    assert list(made.items) == [3, *top_k(rest, 5).tolist()]


def test_newness_halves_in_its_half_life() -> None:
    recency = item_index().recency(NOW, 30.0)
    assert recency[1] == pytest.approx(2 ** (-1 / 30)) and recency[31] == pytest.approx(2 ** (-31 / 30))
    assert recency[0] == 0.0
    assert item_index().recency(0.0, 30.0).max() == 1.0  # a clock that is behind makes nothing newer than new


def test_freshness_weighs_in_standard_deviations() -> None:
    """Items of scores 0, ..., 9: the last, which came just now, rises by so many deviations of what may appear."""
    items = Items.of([f"i{k}" for k in range(11)], added=np.where(np.arange(11) == 0, NOW, 0.0))
    where = ItemIndex(Fixed([*range(10), 1000.0]), items)
    made = listed(where, RecommendationRequest(n=10, freshness=2.0), history=(10,))
    score = dict(zip(made.items, made.scores, strict=True))
    assert score[0] == pytest.approx(2 * np.std(range(10)), rel=1e-5) and score[9] == 9.0


def test_only_newness_makes_an_item_fresh() -> None:
    where = item_index()
    assert "fresh" not in listed(where, RecommendationRequest(n=5, rules=[Boost(50, item="i40")])).sources
    assert (
        "fresh" not in listed(where, RecommendationRequest(n=60, freshness=5.0)).sources
    )  # all are shown: recency or not
    rules = [AtMost(genre, 1) for genre in GENRES[:3]]
    plain, fresh = (
        listed(where, RecommendationRequest(n=5)),
        listed(where, RecommendationRequest(n=5, freshness=3.0, rules=rules)),
    )
    lifted = set(listed(where, RecommendationRequest(n=5, freshness=3.0)).items) - set(plain.items)
    for item, source in zip(fresh.items, fresh.sources, strict=True):
        assert source == ("fresh" if item in lifted else "model")


def test_items_that_came_later_say_so() -> None:
    before = item_index(popularity=False)
    model, items = add_items(before.model, before.items, ["new"], ["Film 5"], [before.items.categories[5]])
    made = listed(ItemIndex(model, items), RecommendationRequest(n=61))
    assert made.sources[made.items.index(60)] == "similar content"


def test_what_the_model_does_not_know_is_told() -> None:
    rules = [Pin("gone", 1), Boost(1.0, item="lost"), Pin("i7", 1)]
    made = listed(
        item_index(),
        RecommendationRequest(candidates=["i2", "no one", "i7", "no one"], rules=rules, exclude=["never"]),
    )
    assert made.items == (7, 2) and made.unknown == ("no one", "gone", "lost")


@pytest.mark.parametrize("popularity", [True, False])
def test_every_model_makes_every_list(popularity: bool) -> None:
    inner, items = item_index(), catalogue(60, popularity)
    rng = np.random.default_rng(0)
    weights = SparseWeights(
        np.arange(61) * 4,
        np.sort(rng.integers(0, 60, (60, 4)), axis=1).astype(np.int32).ravel(),
        rng.random(240).astype(np.float32),
    )
    dense = ItemItem(DenseWeights(FloatTable(rng.random((60, 60)))))
    models = [Popular(rng.random(60)), inner.model]
    for model in (ItemItem(weights), dense):
        models += [model, model.quantised(), add_items(model, items, ["a"], ["Film"], [("drama",)])[0]]
    for model in models:
        where = ItemIndex(model, items if model.n_items == 60 else catalogue(61, popularity))
        for exploration in (EpsilonGreedy(1.0), Thompson(1.0), LinUcb(1.0), None):
            for diversity in (Mmr(), Dpp(), None):
                for deny in ((), ["action"]):
                    request = RecommendationRequest(
                        12, diversity=diversity, exploration=exploration, exclude_seen=False, deny=deny
                    )
                    assert len(set(listed(where, request, (3, 3, 7)).items)) == 12


def test_long_lists_have_every_item_once() -> None:
    where = item_index(3000)
    request = RecommendationRequest(
        n=2900, diversity=Dpp(), exploration=Thompson(), rules=[AtMost("drama", 10_000), Pin("i7", 2)]
    )
    made = listed(where, request)
    assert len(set(made.items)) == 2900 and made.sources[1] == "pinned"
    assert "exploration" in made.sources[:100] and "exploration" not in made.sources[100:]
    assert list(made.scores[200:]) == sorted(made.scores[200:], reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deny": ["dramma"]}, "did you mean 'drama'"),
        ({"allow": ["zzzz"]}, "there are"),
        ({"rules": [AtMost("dramma", 1)]}, "did you mean"),
        ({"rules": [Boost(1.0, "dramma")]}, "did you mean"),
        ({"rules": ["drama"]}, "rule 'drama'"),
        ({"n": 0}, "list of 0"),
        ({"n": 2.5}, "list of 2.5"),
        ({"n": 10**9}, "list of"),
        ({"freshness": np.nan}, "finite"),
        ({"half_life_days": 0.0}, "above 0"),
        ({"exclude": "i40"}, "not one text"),
        ({"diversity": "mmr"}, "diversity='mmr'"),
        ({"exploration": Mmr()}, "exploration=Mmr"),
    ],
)
def test_a_request_that_is_not_valid_gives_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        listed(item_index(), RecommendationRequest(**change))
    assert "\n" not in str(caught.value)


def test_a_model_with_the_items_of_another_is_refused() -> None:
    with pytest.raises(DataError, match="60 items with 59"):
        ItemIndex(item_index().model, catalogue(59))


def test_newness_of_a_day_is_a_day(n: int = 4) -> None:
    items = Items.of([str(k) for k in range(n)], added=NOW - DAY * np.arange(n))
    assert ItemIndex(Fixed(np.zeros(n)), items).recency(NOW, 1.0) == pytest.approx(0.5 ** np.arange(n))
