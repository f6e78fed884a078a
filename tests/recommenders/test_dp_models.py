"""Models made for noise: their updates are bounded by construction, and they find what was planted under noise."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import last_out, planted
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedrec.core import contributions as selection
from fedrec.core.errors import ConfigError
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import State
from fedrec.recommenders.private._private_gram import NearPairs, denoised
from fedrec.recommenders.private.dp_ease import DpEase, DpEaseConfig
from fedrec.recommenders.private.dp_ials import DpIals, DpIalsConfig, semidefinite
from fedrec.recommenders.registry import build, parse
from fedrec.rounds.chain import train_users
from fedrec.testing import RecommenderContract, train
from fedrec.testing.recommenders import CHANCE_RECALL

N_ITEMS = 12


class TestDpEase(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return DpEase(DpEaseConfig(top_items=50, reg=5.0, pair_half_life=10.0))

    def test_a_new_user_is_served_without_training(self, recommender, trained, split) -> None:
        super().test_a_new_user_is_served_without_training(recommender, trained, split)
        assert trained[0]["weights"].shape == (50, 50)


class TestDpIals(RecommenderContract):
    rounds = 6

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return DpIals(DpIalsConfig(embedding_size=8, top_items=60, scoring_half_life=None))


def noisy_train(recommender: Recommender, part, rounds: int, noise: float, seed: int = 5) -> State:
    """Rounds whose sums carry Gaussian noise of the model's own schedule, scaled by `noise`."""
    rng, batch = np.random.default_rng(seed), part.batch(np.arange(part.n_users))
    shared = recommender.init_shared(part.n_items, seed)
    for number, relative in enumerate(recommender.noise_schedule(rounds), start=1):
        total, _ = train_users(recommender, shared, {}, batch, RoundSeed(seed, number), 1.0, part.n_items)
        assert total.clipped == 0, "an update was longer than 1: clipping would distort it"
        layout = recommender.layout(part.n_items, number)
        std = noise * relative
        total.blocks = layout.unflatten(layout.flatten(total.blocks) + std * rng.standard_normal(layout.size))
        total.noise_std = std
        shared, _ = recommender.apply(shared, {}, total)
    return shared


@st.composite
def batches(draw: st.DrawFn) -> UserBatch:
    """One to five users, any lengths, items repeated or not."""
    histories = draw(st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=25), min_size=1, max_size=5))
    indptr = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    item = np.array([i for h in histories for i in h], dtype=np.int64)
    return UserBatch(np.arange(len(histories)), indptr, item, np.ones(len(item), dtype=np.float32))


CONFIGS = st.one_of(
    st.builds(
        DpEaseConfig,
        top_items=st.integers(2, 20),
        histogram_items=st.integers(1, 30),
        history_items=st.integers(1, 30),
        pair_half_life=st.none() | st.floats(0.1, 50),
        diagonal_weight=st.floats(0.01, 1),
    ),
    st.builds(
        DpIalsConfig,
        embedding_size=st.integers(1, 5),
        top_items=st.integers(2, 20),
        history_items=st.integers(1, 30),
        count_exponent=st.floats(0, 1),
        gram_share=st.floats(0.01, 0.7),
        user_gram_share=st.floats(0.01, 0.29),
        user_bound=st.floats(0.01, 10),
        training_half_life=st.none() | st.floats(0.5, 50),
    ),
)


@given(batches(), CONFIGS, st.integers(0, 2**31))
def test_no_user_ever_sends_more_than_norm_one(batch: UserBatch, config, seed: int) -> None:
    """In every round, with any broadcast histogram (noise makes counts negative), for the *sent* vector."""
    recommender, rng = build(config), np.random.default_rng(seed)
    shared = recommender.init_shared(N_ITEMS, seed)
    for number in (1, 2, 3)[: recommender.fixed_rounds or 3]:
        layout = recommender.layout(N_ITEMS, number)
        updates, _ = recommender.compute_updates(shared, {}, batch, RoundSeed(seed, number), N_ITEMS)
        sent = np.array([np.linalg.norm(updates.vector(u, layout)) for u in range(len(batch))])
        assert np.all(updates.norms() <= 1.0)
        assert np.all(sent <= 1 + 1e-12)
        np.testing.assert_allclose(updates.norms(), sent, rtol=1e-6, atol=1e-9)
        total, _ = train_users(recommender, shared, {}, batch, RoundSeed(seed, number), 1.0, N_ITEMS)
        total.noise_std = 1.0
        flat = layout.flatten(total.blocks) + rng.standard_normal(layout.size)
        total.blocks = layout.unflatten(flat)
        shared, _ = recommender.apply(shared, {}, total)


@given(batches(), st.none() | st.floats(0.2, 20), st.floats(0.01, 1))
def test_near_pairs_are_the_stated_sum(batch: UserBatch, half_life, diagonal: float) -> None:
    batch = selection.distinct(batch)
    block = NearPairs(batch.indptr, batch.item, half_life, diagonal)
    for user in range(len(batch)):
        history = batch.item[batch.indptr[user] : batch.indptr[user + 1]]
        expected = np.zeros((N_ITEMS, N_ITEMS))
        for s, a in enumerate(history):
            for t, b in enumerate(history):
                far = half_life is not None and abs(s - t) > np.ceil(6 * half_life)
                weight = 0.0 if far else 1.0 if half_life is None else 2.0 ** (-abs(s - t) / half_life)
                expected[a, b] += diagonal if s == t else weight
        norm = np.linalg.norm(np.triu(expected))
        total = np.zeros((N_ITEMS, N_ITEMS))
        block.add_into(total, np.eye(len(batch))[user])
        np.testing.assert_allclose(total, expected / norm if norm else expected, atol=1e-9)


@given(batches())
def test_distinct_keeps_the_latest_of_each_item(batch: UserBatch) -> None:
    once = selection.distinct(batch)
    for user in range(len(batch)):
        history = batch.item[batch.indptr[user] : batch.indptr[user + 1]].tolist()
        latest = [item for place, item in enumerate(history) if item not in history[place + 1 :]]
        assert once.item[once.indptr[user] : once.indptr[user + 1]].tolist() == latest


def test_items_outside_the_selection_follow_by_popularity() -> None:
    scores = selection.spread(
        np.array([[3.0, -7.0]]), np.array([5.0, 9.0, 1.0, 4.0, 2.0]), np.array([1, 3], dtype=np.int64)
    )
    assert np.argsort(-scores[0]).tolist() == [1, 3, 0, 4, 2]


def test_pure_noise_is_cut_and_a_planted_direction_survives() -> None:
    rng, k, std = np.random.default_rng(0), 200, 0.7
    upper = np.triu(rng.standard_normal((k, k))) * std
    noise = upper + np.triu(upper, 1).T
    assert np.count_nonzero(denoised(np.linalg.eigvalsh(noise), std, 1.1)) == 0
    direction = rng.standard_normal(k) / np.sqrt(k)
    direction /= np.linalg.norm(direction)
    values = denoised(np.linalg.eigvalsh(noise + 100 * np.outer(direction, direction)), std, 1.0)
    # Frobenius-optimal: 100 times the squared cosine between the noisy and the true direction, 1 - k σ² / 100².
    assert np.count_nonzero(values > 20) == 1
    assert values.max() == pytest.approx(100 * (1 - k * std**2 / 100**2), rel=0.02)
    np.testing.assert_array_equal(denoised(np.array([-1.0, 2.0]), 0.0, 1.0), [0.0, 2.0])


def test_the_nearest_semidefinite_matrix() -> None:
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    np.testing.assert_allclose(
        semidefinite(turn @ np.diag([2.0, -1.0, 0.5]) @ turn.T),
        turn @ np.diag([2.0, 0.0, 0.5]) @ turn.T,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("recommender", "rounds"),
    [
        (DpEase(DpEaseConfig(top_items=60, reg=30.0)), 2),
        (DpIals(DpIalsConfig(embedding_size=8, top_items=60, scoring_half_life=None)), 4),
    ],
)
def test_taste_survives_noise_that_hides_a_user(recommender, rounds: int) -> None:
    """1 500 users, noise of half a user's whole contribution on every value; it must not survive 1 000 times that."""
    split = last_out(planted(n_users=1500))
    batch = split.batch(split.train)
    found = []
    for noise in (0.5, 500.0):
        shared = noisy_train(recommender, split.train, rounds, noise)
        scores = recommender.score(shared, {}, batch)
        assert np.isfinite(scores).all()
        found.append(RecommenderContract.recall_at_9(scores, batch, split))
    assert found[0] > 2.5 * CHANCE_RECALL
    assert found[1] < 2 * CHANCE_RECALL


@pytest.mark.parametrize(
    ("recommender", "rounds", "name"),
    [
        (DpEase(DpEaseConfig(top_items=40)), 2, "weights"),
        (DpIals(DpIalsConfig(embedding_size=4, top_items=40)), 4, "item_table"),
    ],
)
def test_without_noise_the_federation_equals_its_baseline(recommender, rounds: int, name: str, split) -> None:
    federated, _ = train(recommender, split.train, rounds)
    central, _ = recommender.fit(split.train, 3, rounds)
    assert np.abs(central[name]).max() > 1e-3
    np.testing.assert_allclose(federated[name], central[name], atol=1e-5)


@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize("kind", ["dp_ease", "dp_ials"])
def test_the_schedule_spends_the_stated_share_on_the_histogram(kind: str, rounds: int) -> None:
    recommender = build(parse({"kind": kind, "count_share": 0.2}))
    rounds = recommender.fixed_rounds or rounds
    spent = np.array(recommender.noise_schedule(rounds)) ** -2.0
    assert len(spent) == rounds
    assert spent[0] / spent.sum() == pytest.approx(0.2)


def test_a_large_catalogue_costs_no_square_matrix() -> None:
    layout = DpEase(DpEaseConfig(top_items=100)).layout(2_000_000, 2)
    assert layout.size == 100 * 101 // 2


def test_settings_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="add up to more than"):
        DpIalsConfig(gram_share=0.8, user_gram_share=0.2)
    with pytest.raises(ConfigError, match="rounds=1"):
        DpIals(DpIalsConfig()).noise_schedule(1)
