"""The contract of a recommender; subclass `RecommenderContract` and give `model`, the values of its configuration.

The data are planted (`fedrec.testing.planted`): 120 users in 4 groups of taste, 60 items.

Letters: U users, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec.core.interactions import Interactions, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed, Scores
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.ranking.model import History
from fedrec.ranking.read import read_model
from fedrec.recommenders.registry import RECOMMENDERS, build, parse
from fedrec.recommenders.serving import serving_form
from fedrec.rounds.chain import train_users
from fedrec.testing.planted import last_out, planted, planted_features

#: Share of users whose held-out item is among the best 9 of about 50 unseen items, by chance (.15 to .18).
CHANCE_RECALL = 0.15


def train(
    recommender: Recommender,
    part: Interactions,
    rounds: int,
    seed: int = 3,
    features: Scores | None = None,
) -> tuple[State, State]:
    """Shared and local state of a federation of one node without clipping."""
    batch = part.batch(np.arange(part.n_users))
    shared = recommender.init_shared(part.n_items, seed, features)
    server, local = recommender.init_server(shared), recommender.init_local(batch.user, seed)
    for number in range(1, 1 + (recommender.fixed_rounds or rounds)):
        total, local = train_users(
            recommender, shared, local, batch, RoundSeed(seed, number), None, part.n_items
        )
        shared, server = recommender.apply(shared, server, total)
    return shared, local


def poison(shared: State, rows: NDArray[np.int64], n_items: int) -> State:
    """NaN in every row of an item table that is not among `rows`."""
    away = np.setdiff1d(np.arange(n_items), rows)
    out = {name: values.copy() for name, values in shared.items()}
    for values in out.values():
        if values.shape[:1] == (n_items,) and np.issubdtype(values.dtype, np.floating):
            values[away] = np.nan
    return out


def of_users(local: State, rows: NDArray[np.int64] | slice) -> State:
    """The local state of some users."""
    return {name: values[rows] for name, values in local.items()}


@cache
def _planted_split() -> Split:
    return last_out(planted())


class RecommenderContract:
    """What training, privacy, secure aggregation, evaluation and serving rely on."""

    #: Values of the configuration, with "kind" (a name or an import path); `small` of the class is laid under them.
    model: ClassVar[Mapping[str, Any]] = {}
    #: Rounds of training, where the model does not fix them.
    rounds: ClassVar[int] = 10
    #: Public features of the planted items; None: made as wide as the model needs.
    features: ClassVar[Scores | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        """The model; made once."""
        small = RECOMMENDERS.get(cls.model["kind"], paths=True).small
        return build(parse({**small, **cls.model}, paths=True))

    @pytest.fixture(scope="class")
    @classmethod
    def split(cls) -> Split:
        """Planted data, the last two interactions of each user held out."""
        return _planted_split()

    @pytest.fixture(scope="class")
    @classmethod
    def public(cls, recommender: Recommender) -> Scores | None:
        """[I, F] what the model reads of the items."""
        width = recommender.needs.features
        return planted_features(width=width) if cls.features is None and width else cls.features

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, recommender: Recommender, split: Split, public: Scores | None) -> tuple[State, State]:
        """Shared and local state after training."""
        return train(recommender, split.train, cls.rounds, features=public)

    def test_its_configuration_survives_a_file(self, recommender: Recommender) -> None:
        """Runs, nodes and tasks hold it as JSON."""
        config = recommender.config
        again = parse(config.model_dump(mode="json"), paths=True)
        assert again == config and type(again) is type(config)

    def test_its_layout_is_what_it_sends(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """Sums are laid out before anything is computed."""
        shared, local = trained
        batch, n_items = split.train.batch(np.arange(3)), split.train.n_items
        layout = recommender.layout(n_items, 2)
        updates, _ = recommender.compute_updates(
            shared, of_users(local, slice(3)), batch, RoundSeed(3, 2), n_items
        )
        assert set(updates.blocks) == set(layout.blocks) and updates.n_users == 3
        assert updates.vector(1, layout).shape == (layout.size,)

    def test_update_depends_on_touched_rows_only(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """What is broadcast may be restricted to these rows."""
        shared, local = trained
        batch, n_items = split.train.batch(np.arange(split.train.n_users)), split.train.n_items
        key, layout = RoundSeed(3, 2), recommender.layout(n_items, 2)
        for user in (0, 17):
            rows = np.array([user])
            one, mine = batch.take(rows), of_users(local, rows)
            touched = recommender.touched_rows(one, key, n_items)
            whole, _ = recommender.compute_updates(shared, mine, one, key, n_items)
            blind, _ = recommender.compute_updates(poison(shared, touched, n_items), mine, one, key, n_items)
            np.testing.assert_array_equal(whole.vector(0, layout), blind.vector(0, layout))

    def test_users_are_independent_of_their_batch(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """A device with one user sends what a node with many computes for that user."""
        shared, local = trained
        batch, key, n_items = split.train.batch(np.arange(40)), RoundSeed(3, 2), split.train.n_items
        mine, layout = of_users(local, slice(40)), recommender.layout(n_items, 2)
        together, after = recommender.compute_updates(shared, mine, batch, key, n_items)
        for user in (0, 9, 39):
            rows = np.array([user])
            alone, own = recommender.compute_updates(
                shared, of_users(mine, rows), batch.take(rows), key, n_items
            )
            np.testing.assert_allclose(together.vector(user, layout), alone.vector(0, layout), atol=1e-6)
            for name in own:
                np.testing.assert_allclose(after[name][user], own[name][0], atol=1e-6)

    def test_norm_is_that_of_the_sent_vector(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """Clipping by another norm would bound nothing."""
        shared, local = trained
        batch, n_items = split.train.batch(np.arange(12)), split.train.n_items
        updates, _ = recommender.compute_updates(
            shared, of_users(local, slice(12)), batch, RoundSeed(3, 2), n_items
        )
        layout = recommender.layout(n_items, 2)
        sent = [np.linalg.norm(updates.vector(user, layout)) for user in range(12)]
        np.testing.assert_allclose(updates.norms(), sent, rtol=1e-9)

    def test_norm_is_that_of_the_sent_vector_though_items_repeat(
        self, recommender: Recommender, split: Split, public: Scores | None
    ) -> None:
        """Users come back to an item; the bound of their update must see the sum of it, not its parts."""
        users, events, n_items = 6, 9, split.train.n_items
        item = np.random.default_rng(8).integers(0, 4, size=users * events) * 7
        batch = UserBatch(
            np.arange(users), np.arange(users + 1) * events, item, np.ones(users * events, dtype=np.float32)
        )
        shared = recommender.init_shared(n_items, 5, public)
        local, server = recommender.init_local(batch.user, 5), recommender.init_server(shared)
        for number in range(1, 1 + (recommender.fixed_rounds or 4)):
            key, layout = RoundSeed(5, number), recommender.layout(n_items, number)
            updates, _ = recommender.compute_updates(shared, local, batch, key, n_items)
            sent = [np.linalg.norm(updates.vector(user, layout)) for user in range(users)]
            np.testing.assert_allclose(updates.norms(), sent, rtol=1e-6, atol=1e-12)
            total, local = train_users(recommender, shared, local, batch, key, None, n_items)
            shared, server = recommender.apply(shared, server, total)

    def test_clipping_bounds_the_sum(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """The sum of clipped updates is at most the bound times the users."""
        shared, local = trained
        batch = split.train.batch(np.arange(split.train.n_users))
        total, _ = train_users(recommender, shared, local, batch, RoundSeed(3, 2), 0.01, split.train.n_items)
        vector = recommender.layout(split.train.n_items, 2).flatten(total.blocks)
        assert np.linalg.norm(vector) <= 0.01 * len(batch) * (1 + 1e-9)
        assert total.clipped > 0

    def test_training_does_not_touch_its_inputs(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """A round that fails is repeated from the same state."""
        shared, local = trained
        before = {n: v.copy() for n, v in {**shared, **local}.items()}
        batch = split.train.batch(np.arange(split.train.n_users))
        train_users(recommender, shared, local, batch, RoundSeed(3, 2), None, split.train.n_items)
        for name, values in {**shared, **local}.items():
            np.testing.assert_array_equal(values, before[name])

    def test_same_seed_same_model(
        self, recommender: Recommender, trained: tuple[State, State], split: Split, public: Scores | None
    ) -> None:
        """Runs can be repeated."""
        again, local = train(recommender, split.train, self.rounds, features=public)
        for name, values in again.items():
            np.testing.assert_array_equal(values, trained[0][name])
        for name, values in local.items():
            np.testing.assert_array_equal(values, trained[1][name])

    def test_finds_the_planted_taste(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """Federated training learns."""
        shared, local = trained
        batch = split.batch(split.train)
        assert self.recall_at_9(recommender.score(shared, local, batch), batch, split) > 3 * CHANCE_RECALL

    def test_centralised_training_finds_it_too(
        self, recommender: Recommender, split: Split, public: Scores | None
    ) -> None:
        """The baseline with which federated training is compared."""
        shared, local = recommender.fit(split.train, 3, self.rounds, public)
        batch = split.batch(split.train)
        assert self.recall_at_9(recommender.score(shared, local, batch), batch, split) > 3 * CHANCE_RECALL

    def test_a_new_user_is_served_without_training(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """Fold-in: from the history alone."""
        shared, _ = trained
        batch = split.batch(split.train)
        local = recommender.fold_in(shared, batch)
        assert self.recall_at_9(recommender.score(shared, local, batch), batch, split) > 3 * CHANCE_RECALL

    def test_empty_history_is_scored(self, recommender: Recommender, trained: tuple[State, State]) -> None:
        """Every user gets a list."""
        shared, _ = trained
        new = UserBatch(
            np.array([999]), np.array([0, 0]), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        )
        scores = recommender.score(shared, recommender.fold_in(shared, new), new)
        assert np.isfinite(scores).all()

    def test_its_serving_form_gives_its_scores(
        self, recommender: Recommender, trained: tuple[State, State], split: Split
    ) -> None:
        """On a device, with numpy alone, and after a file; another way of folding in keeps the order nearly."""
        if recommender.serving_refusal() is not None:
            pytest.skip("it states that it does not serve on a device")
        model = serving_form(recommender, trained[0])
        model = read_model(*model.to_arrays())
        assert model.n_items == split.train.n_items
        for user in range(0, split.train.n_users, 17):
            batch = split.train.batch(np.array([user]))
            history = History(batch.item, np.ones(len(batch.item), np.float32))
            wanted = recommender.score(trained[0], recommender.fold_in(trained[0], batch), batch)[0]
            found = model.scores(model.fold_in(history))
            if recommender.serves_exactly:
                np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
            else:
                ranks = np.argsort(np.argsort(found)), np.argsort(np.argsort(wanted))
                assert np.corrcoef(*ranks)[0, 1] > 0.85

    @staticmethod
    def recall_at_9(scores: Scores, batch: UserBatch, split: Split) -> float:
        """Share of users whose validation item is among the best 9 of about 50 unseen items."""
        assert split.validation is not None
        scores = scores.copy()
        scores[batch.row, batch.item] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :9]
        target = split.batch(split.validation).item
        return float((best == target[:, None]).any(axis=1).mean())
