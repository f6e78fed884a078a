"""The contract every recommender must keep; subclass `RecommenderContract` and give `recommender`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from fedrec.core.interactions import Interactions, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.rounds.chain import train_users

CHANCE_RECALL = 0.15


def train(
    recommender: Recommender,
    part: Interactions,
    rounds: int,
    seed: int = 3,
    features: np.ndarray | None = None,
) -> tuple[State, State]:
    """A federation of one node without clipping."""
    batch = part.batch(np.arange(part.n_users))
    shared = recommender.init_shared(part.n_items, seed, features)
    server, local = recommender.init_server(shared), recommender.init_local(batch.user, seed)
    for number in range(1, 1 + (recommender.fixed_rounds or rounds)):
        total, local = train_users(
            recommender, shared, local, batch, RoundSeed(seed, number), None, part.n_items
        )
        shared, server = recommender.apply(shared, server, total)
    return shared, local


def poison(shared: State, rows: np.ndarray, n_items: int) -> State:
    """NaN in every row of an item table that is not among `rows`."""
    away = np.setdiff1d(np.arange(n_items), rows)
    out = {name: values.copy() for name, values in shared.items()}
    for values in out.values():
        if values.shape[:1] == (n_items,) and np.issubdtype(values.dtype, np.floating):
            values[away] = np.nan
    return out


class RecommenderContract:
    rounds = 10
    #: Public features of the planted items, for models that need them.
    features: ClassVar[np.ndarray | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        raise NotImplementedError("each subclass gives its recommender")

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, recommender: Recommender, split: Split) -> tuple[State, State]:
        return train(recommender, split.train, cls.rounds, features=cls.features)

    def test_update_depends_on_touched_rows_only(self, recommender, trained, split) -> None:
        shared, local = trained
        batch = split.train.batch(np.arange(split.train.n_users))
        key = RoundSeed(3, 2)
        for user in (0, 17):
            rows = np.array([user])
            one = batch.take(rows)
            mine = {name: values[rows] for name, values in local.items()}
            touched = recommender.touched_rows(one, key, split.train.n_items)
            layout = recommender.layout(split.train.n_items, 2)
            whole, _ = recommender.compute_updates(shared, mine, one, key, split.train.n_items)
            blind, _ = recommender.compute_updates(
                poison(shared, touched, split.train.n_items), mine, one, key, split.train.n_items
            )
            np.testing.assert_array_equal(whole.vector(0, layout), blind.vector(0, layout))

    def test_users_are_independent_of_their_batch(self, recommender, trained, split) -> None:
        shared, local = trained
        batch, key = split.train.batch(np.arange(40)), RoundSeed(3, 2)
        mine = {name: values[:40] for name, values in local.items()}
        layout = recommender.layout(split.train.n_items, 2)
        together, after = recommender.compute_updates(shared, mine, batch, key, split.train.n_items)
        for user in (0, 9, 39):
            rows = np.array([user])
            alone, own = recommender.compute_updates(
                shared,
                {name: values[rows] for name, values in mine.items()},
                batch.take(rows),
                key,
                split.train.n_items,
            )
            np.testing.assert_allclose(together.vector(user, layout), alone.vector(0, layout), atol=1e-6)
            for name in own:
                np.testing.assert_allclose(after[name][user], own[name][0], atol=1e-6)

    def test_norm_is_that_of_the_sent_vector(self, recommender, trained, split) -> None:
        shared, local = trained
        batch = split.train.batch(np.arange(12))
        mine = {name: values[:12] for name, values in local.items()}
        updates, _ = recommender.compute_updates(shared, mine, batch, RoundSeed(3, 2), split.train.n_items)
        layout = recommender.layout(split.train.n_items, 2)
        sent = [np.linalg.norm(updates.vector(user, layout)) for user in range(12)]
        np.testing.assert_allclose(updates.norms(), sent, rtol=1e-9)

    def test_clipping_bounds_the_sum(self, recommender, trained, split) -> None:
        shared, local = trained
        batch = split.train.batch(np.arange(split.train.n_users))
        total, _ = train_users(recommender, shared, local, batch, RoundSeed(3, 2), 0.01, split.train.n_items)
        vector = recommender.layout(split.train.n_items, 2).flatten(total.blocks)
        assert np.linalg.norm(vector) <= 0.01 * len(batch) * (1 + 1e-9)
        assert total.clipped > 0

    def test_training_does_not_touch_its_inputs(self, recommender, trained, split) -> None:
        shared, local = trained
        before = {n: v.copy() for n, v in {**shared, **local}.items()}
        batch = split.train.batch(np.arange(split.train.n_users))
        train_users(recommender, shared, local, batch, RoundSeed(3, 2), None, split.train.n_items)
        for name, values in {**shared, **local}.items():
            np.testing.assert_array_equal(values, before[name])

    def test_same_seed_same_model(self, recommender, trained, split) -> None:
        again, local = train(recommender, split.train, self.rounds, features=self.features)
        for name, values in again.items():
            np.testing.assert_array_equal(values, trained[0][name])
        for name, values in local.items():
            np.testing.assert_array_equal(values, trained[1][name])

    def test_finds_the_planted_taste(self, recommender, trained, split) -> None:
        shared, local = trained
        batch = split.batch(split.train)
        assert self.recall_at_9(recommender.score(shared, local, batch), batch, split) > 3 * CHANCE_RECALL

    def test_baseline_finds_it_too(self, recommender, split) -> None:
        shared, local = recommender.fit(split.train, 3, self.rounds, self.features)
        batch = split.batch(split.train)
        assert self.recall_at_9(recommender.score(shared, local, batch), batch, split) > 3 * CHANCE_RECALL

    def test_a_new_user_is_served_without_training(self, recommender, trained, split) -> None:
        shared, _ = trained
        batch = split.batch(split.train)
        local = recommender.fold_in(shared, batch)
        assert self.recall_at_9(recommender.score(shared, local, batch), batch, split) > 3 * CHANCE_RECALL

    def test_empty_history_is_scored(self, recommender, trained) -> None:
        shared, _ = trained
        no_one = UserBatch(
            np.array([999]), np.array([0, 0]), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        )
        scores = recommender.score(shared, recommender.fold_in(shared, no_one), no_one)
        assert np.isfinite(scores).all()

    @staticmethod
    def recall_at_9(scores: np.ndarray, batch: UserBatch, split: Split) -> float:
        """Share of users whose validation item is among the best 9 of about 50 unseen items (chance .15 to .18)."""
        scores = scores.copy()
        scores[batch.row, batch.item] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :9]
        target = split.batch(split.validation).item
        return float((best == target[:, None]).any(axis=1).mean())
