"""Every recommender behind the contract, and closed forms against independent references."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fedrec.core.recommender import RoundSeed
from fedrec.data.split import Split
from fedrec.recommenders.closed_form.ease import Ease, EaseConfig
from fedrec.recommenders.closed_form.ials import Ials, IalsConfig
from fedrec.recommenders.closed_form.item_knn import ItemKnn, ItemKnnConfig
from fedrec.recommenders.closed_form.popularity import Popularity, PopularityConfig
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig
from fedrec.rounds.chain import train_users
from fedrec.testing import RecommenderContract, train


class TestEase(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return Ease(EaseConfig(reg=20.0, activity_exponent=0.2, scoring_half_life=20))


class TestItemKnn(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return ItemKnn(ItemKnnConfig(neighbours=20))


class TestIals(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return Ials(IalsConfig(embedding_size=8, reg=0.01))


class TestMfBce(RecommenderContract):
    rounds = 60

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return MatrixFactorisation(MfConfig(embedding_size=8, learning_rate=0.02))


class TestMfBpr(RecommenderContract):
    rounds = 60

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return MatrixFactorisation(MfConfig(embedding_size=8, learning_rate=0.03, loss="bpr"))


class TestMfTorch(RecommenderContract):
    rounds = 60

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return MatrixFactorisation(MfConfig(embedding_size=8, learning_rate=0.02, backend="torch"))


class TestPopularity(RecommenderContract):
    """Popularity cannot know a taste: the planted groups are equally popular."""

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return Popularity(PopularityConfig())

    def test_finds_the_planted_taste(self, recommender, trained, split) -> None:
        np.testing.assert_array_equal(trained[0]["count"], split.train.item_counts)

    def test_centralised_training_finds_it_too(self, recommender, trained, split) -> None:
        np.testing.assert_array_equal(recommender.fit(split.train, 0, 1)[0]["count"], trained[0]["count"])

    def test_a_new_user_is_served_without_training(self, recommender, trained, split) -> None:
        scores = recommender.score(trained[0], {}, split.batch(split.train))
        assert (scores == scores[0]).all()


@pytest.mark.parametrize(
    ("recommender", "rounds", "name"),
    [
        (Ease(EaseConfig(reg=20.0)), 1, "weights"),
        (Ease(EaseConfig(reg=5.0, activity_exponent=0.3, training_half_life=10)), 1, "weights"),
        (ItemKnn(ItemKnnConfig(neighbours=60)), 1, "similarity"),
        (Ials(IalsConfig(embedding_size=8, reg=0.01)), 10, "item_table"),
        (
            Ials(IalsConfig(embedding_size=8, reg=0.05, reg_exponent=0.5, training_half_life=10)),
            10,
            "item_table",
        ),
    ],
)
def test_federated_closed_form_equals_its_baseline(recommender, rounds: int, name: str, split: Split) -> None:
    federated, _ = train(recommender, split.train, rounds)
    central, _ = recommender.fit(split.train, 3, rounds)
    assert np.abs(central[name]).max() > 1e-2
    np.testing.assert_allclose(federated[name], central[name], atol=1e-4)


def test_ease_solves_its_stated_problem(split: Split) -> None:
    """min |X - XB|² + λ|B|² with diag(B) = 0, solved column by column by ridge without the own item."""
    x = np.zeros((split.train.n_users, split.train.n_items))
    x[split.train.user, split.train.item] = 1.0
    weights = Ease(EaseConfig(reg=20.0)).fit(split.train, 0, 1)[0]["weights"]
    for item in (0, 31):
        others = np.delete(np.arange(x.shape[1]), item)
        left = x[:, others].T @ x[:, others] + 20.0 * np.eye(len(others))
        expected = np.linalg.solve(left, x[:, others].T @ x[:, item])
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-4)


def test_ials_lowers_its_stated_loss_in_every_round(split: Split) -> None:
    config = IalsConfig(embedding_size=8, reg=0.02)
    recommender, part = Ials(config), split.train
    batch, x = part.batch(np.arange(part.n_users)), np.zeros((part.n_users, part.n_items))
    x[part.user, part.item] = 1.0
    shared, losses = recommender.init_shared(part.n_items, 0), []
    for number in range(1, 7):
        users = recommender.fold_in(shared, batch)["user_vector"].astype(np.float64)
        items = shared["item_table"].astype(np.float64)
        predicted = users @ items.T
        a = config.unobserved_weight
        losses.append(
            (x * (predicted - 1) ** 2).sum()
            + a * (predicted**2).sum()
            + config.reg * ((part.counts + a * part.n_items) @ np.square(users).sum(1))
            + config.reg * ((part.item_counts + a * part.n_users) @ np.square(items).sum(1))
        )
        total, _ = train_users(recommender, shared, {}, batch, RoundSeed(0, number), None, part.n_items)
        shared, _ = recommender.apply(shared, {}, total)
    assert all(after < before for before, after in pairwise(losses[1:])), losses


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_compiled_kernel_equals_the_generic_torch_path(loss, batch_size: int, split: Split) -> None:
    settings = {
        "embedding_size": 8,
        "loss": loss,
        "batch_size": batch_size,
        "local_epochs": 2,
        "init_scale": 1.0,
    }
    batch = split.train.batch(np.arange(split.train.n_users))
    sums = []
    for backend in ("compiled", "torch"):
        recommender = MatrixFactorisation(MfConfig(**settings, backend=backend, reg=0.05))
        shared, local = recommender.init_shared(split.train.n_items, 1), recommender.init_local(batch.user, 1)
        shared["item_bias"] += np.linspace(-1, 1, len(shared["item_bias"]), dtype=np.float32)
        free, _ = train_users(recommender, shared, local, batch, RoundSeed(1, 4), None, split.train.n_items)
        mean = free.norm / free.users
        sums.append(
            train_users(recommender, shared, local, batch, RoundSeed(1, 4), mean, split.train.n_items)
        )
    (compiled, own), (torch, other) = sums
    assert 0 < compiled.clipped < len(batch)
    assert abs(compiled.clipped - torch.clipped) <= 1
    for name, values in compiled.blocks.items():
        np.testing.assert_allclose(values, torch.blocks[name], atol=2e-5)
    np.testing.assert_allclose(own["user_vector"], other["user_vector"], atol=2e-5)


def test_held_out_items_are_drawn_as_negatives_like_any_other(split: Split) -> None:
    """The published leak: negatives that avoid held-out items. Here each must be drawn as often as chance says."""
    from fedrec.neural.views import build_views

    batch = split.train.batch(np.arange(split.train.n_users))
    target = split.batch(split.test).item
    hits = draws = expected = 0.0
    for number in range(30):
        views = build_views(batch, 5, number, split.train.n_items, 4, 1)
        for user in range(len(batch)):
            rows = views.row[views.row_ptr[user] : views.row_ptr[user + 1]]
            negatives = rows[views.slot[views.example_ptr[user] : views.example_ptr[user + 1], 1:]].ravel()
            assert not np.isin(negatives, split.train.history(user)).any()
            hits += float((negatives == target[user]).sum())
            draws += negatives.size
            expected += negatives.size / (split.train.n_items - batch.counts[user])
    assert abs(hits - expected) < 5 * np.sqrt(expected)
    assert draws > 10_000
