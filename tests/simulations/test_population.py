"""Synthetic populations: as many as asked for, like the real ones, and no one's copy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Interactions
from fedrec.data.loaders import load_dataset
from fedrec_simulations.experiments.population import Walk, synthetic_population

MOVIES = load_dataset("movietweetings").interactions


def small(users: int = 40, items: int = 30, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(users) for i in rng.permutation(items)[: rng.integers(1, items)]]
    user, item = np.array(pairs).T
    return Interactions.from_columns(user, item)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 25), st.integers(2, 12), st.floats(0.1, 4.0), st.integers(0, 2**40))
def test_every_history_is_short_enough_and_without_repetition(users, items, factor, seed):
    base = small(users, items)
    data = synthetic_population(base, max(factor, 1 / users), seed).interactions
    assert data.n_users == round(max(factor, 1 / users) * base.n_users)
    assert data.n_items == base.n_items
    pairs = data.user * data.n_items + data.item
    assert len(np.unique(pairs)) == len(pairs)
    assert (data.counts >= 1).all() and data.counts.max() <= base.counts.max()
    assert np.isin(data.item, base.item).all()


def test_a_larger_population_begins_with_the_users_of_a_smaller_one():
    few, many = (synthetic_population(small(), f, 3).interactions for f in (2, 5))
    assert np.array_equal(few.item, many.item[: len(few)])
    assert not np.array_equal(few.item, synthetic_population(small(), 2, 4).interactions.item)


def test_user_ids_are_in_order_and_a_history_is_in_the_order_of_its_time():
    data = synthetic_population(small(), 30, 0).interactions
    assert list(data.user_ids) == sorted(data.user_ids)
    again = Interactions.from_columns(data.user, data.item, timestamp=data.timestamp, item_ids=data.item_ids)
    assert np.array_equal(again.item, data.item)


def test_popularity_and_lengths_are_those_of_the_real_data():
    data = synthetic_population(MOVIES, 1.0, 0).interactions
    assert abs(len(data) / len(MOVIES) - 1) < 0.05
    quantiles = [0.25, 0.5, 0.75, 0.9, 0.99]
    real, made = (np.quantile(x.counts, quantiles) for x in (MOVIES, data))
    assert np.allclose(made, real, rtol=0.2, atol=1)
    real_share, made_share = (x.item_counts / len(x) for x in (MOVIES, data))
    assert np.abs(real_share - made_share).sum() / 2 < 0.25
    assert np.corrcoef(np.log1p(MOVIES.item_counts), np.log1p(data.item_counts))[0, 1] > 0.8


def test_what_follows_what_is_as_in_the_real_data_and_not_by_chance():
    data = synthetic_population(MOVIES, 1.0, 0).interactions

    def steps(x: Interactions) -> set[int]:
        same = x.user[1:] == x.user[:-1]
        return set((x.item[:-1] * x.n_items + x.item[1:])[same].tolist())

    known = steps(MOVIES)
    made = steps(data)
    assert len(made & known) / len(made) > 0.7
    rng = np.random.default_rng(0)
    shuffled = Interactions.from_columns(
        data.user, rng.permutation(data.item), timestamp=data.timestamp,
        item_ids=np.arange(data.n_items).astype(str),
    )  # fmt: skip
    assert len(steps(shuffled) & known) / len(steps(shuffled)) < 0.2


def test_long_histories_are_nobodys_copy():
    base = small(60, 200, 1)
    data = synthetic_population(base, 2.0, 0, Walk(crossover=0.3)).interactions
    real = [set(base.history(u).tolist()) for u in range(base.n_users)]
    long = [u for u in range(data.n_users) if data.counts[u] >= 60]
    assert len(long) > 20
    # Several histories make up each walk: what it has is not the beginning of any single one.
    beginnings = [
        max(len(set(data.history(u).tolist()) & set(base.history(v)[:len(data.history(u))].tolist())) / data.counts[u]
            for v in range(base.n_users))
        for u in long
    ]  # fmt: skip
    assert np.mean(beginnings) < 0.85 and len(real) == 60


def test_users_without_interactions_are_not_counted():
    base = small()
    some = base.select(base.user < 10)
    assert synthetic_population(some, 2.0, 0).interactions.n_users == 20


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 0.001])
def test_a_factor_that_gives_no_one_is_refused(factor):
    with pytest.raises(ConfigError, match="expected at least"):
        synthetic_population(small(), factor, 0)


@pytest.mark.parametrize("wrong", [{"crossover": 0.0}, {"crossover": 1.5}, {"candidates": 0}, {"window": -1}])
def test_walks_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Walk(**wrong)


def test_nothing_to_fit_to_is_refused():
    base = small()
    with pytest.raises(DataError, match="without interactions"):
        synthetic_population(base.select(np.zeros(len(base), dtype=bool)), 2.0, 0)
