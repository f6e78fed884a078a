"""Every model that is trained by gradients, and the content model: the contract, and what each must find."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.core.errors import ConfigError
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.data.split import Split
from fedrec.neural._central_step import central_step
from fedrec.neural.item_features import FEATURES
from fedrec.neural.recommender import NeuralRecommender
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.recommenders.registry import build, parse
from fedrec.rounds.chain import train_users
from fedrec.testing import RecommenderContract

ADAM = {"name": "adam", "learning_rate": 0.02}


def described(n_items: int = 60, groups: int = 4, width: int = 12) -> np.ndarray:
    """Public features from which the group of a planted item can be told, under noise."""
    rng = np.random.default_rng(7)
    which = np.arange(n_items) % groups
    return (rng.normal(size=(groups, width))[which] + 0.3 * rng.normal(size=(n_items, width))).astype(
        np.float32
    )


def model(kind: str, **values: object) -> Recommender:
    return build(parse({"kind": kind, **values}))


class NeuralContract(RecommenderContract):
    rounds = 40

    def test_a_round_with_everyone_is_a_step_of_the_baseline(self, recommender, split: Split) -> None:
        """One pass, one minibatch with everyone in it: federated and centralised must be the same arithmetic."""
        # Adam would blow up the rounding of gradients that are zero.
        plain = {"server": ServerOptimizer(name="sgd", learning_rate=1.0)}
        recommender = build(recommender.config.model_copy(update=plain))
        assert isinstance(recommender, NeuralRecommender)
        batch, n_items = split.train.batch(np.arange(split.train.n_users)), split.train.n_items
        shared = recommender.init_shared(n_items, 3, self.features)
        local = recommender.init_local(batch.user, 3)
        work = recommender.work(batch, RoundSeed(3, 1), n_items, shared)[0]
        assert work.steps == 1
        total, after = train_users(recommender, shared, local, batch, RoundSeed(3, 1), None, n_items)
        federated, _ = recommender.apply(shared, recommender.init_server(shared), total)
        own = {name: values.copy() for name, values in local.items()}
        central, _ = central_step(
            recommender, shared, recommender.init_server(shared), own, batch.user, batch, RoundSeed(3, 1)
        )
        for name, values in federated.items():
            np.testing.assert_allclose(values, central[name], atol=1e-5, err_msg=name)
        for name, values in after.items():
            np.testing.assert_allclose(values, own[name], atol=1e-5, err_msg=name)


SMALL = {"embedding_size": 16, "max_length": 12, "dropout": 0.1, "server": ADAM, "batch_users": 30}


class TestSasRec(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("sasrec", blocks=1, **SMALL)


class TestSasRecSampled(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("sasrec", blocks=1, loss="sampled", negatives=20, heads=2, **SMALL)


class TestSasRecTwoPasses(NeuralContract):
    # Several local steps are federated averaging, which no minibatch step equals.
    test_a_round_with_everyone_is_a_step_of_the_baseline = None

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(
            "sasrec", blocks=1, local_epochs=2, device={"name": "sgd", "learning_rate": 0.3}, **SMALL
        )


class TestGru4Rec(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("gru4rec", **SMALL)


class TestBert4Rec(NeuralContract):
    rounds = 60

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("bert4rec", blocks=1, **SMALL)


class TestTwoTower(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("two_tower", **SMALL)


class TestTwoTowerWithFeatures(NeuralContract):
    features = described()

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("two_tower", features=12, loss="sampled", negatives=20, **SMALL)


class TestTextAttention(NeuralContract):
    features = described()

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("text_sequence", features=12, rank=4, negatives=20, **SMALL | {"embedding_size": 12})


class TestTextLstm(NeuralContract):
    features = described()

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        small = SMALL | {"embedding_size": 12}
        return model("text_sequence", features=12, rank=4, head="lstm", loss="full", **small)


class TestGmf(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("gmf", embedding_size=8, device={"learning_rate": 0.1}, server=ADAM, batch_users=30)


class TestMlp(NeuralContract):
    rounds = 80

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        device = {"learning_rate": 0.1}
        return model(
            "mlp",
            embedding_size=8,
            layers=[16, 8],
            init_scale=0.5,
            device=device,
            server=ADAM,
            batch_users=30,
        )


class TestNeuMf(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        device = {"learning_rate": 0.1}
        return model("neumf", embedding_size=8, layers=[16, 8], device=device, server=ADAM, batch_users=30)


class TestMultVae(NeuralContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("mult_vae", embedding_size=8, hidden_size=16, server=ADAM, batch_users=30)


class TestContent(RecommenderContract):
    features = described()

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model("content", features=12, item_reg=1.0, profile_reg=0.1)

    def test_federated_is_the_baseline(self, recommender, trained, split: Split) -> None:
        central, _ = recommender.fit(split.train, 3, 1, self.features)
        np.testing.assert_allclose(trained[0]["map"], central["map"], atol=1e-5)

    def test_items_that_no_one_had_are_found_by_what_they_are(self, recommender, split: Split) -> None:
        """The last twelve items, three of each group, are taken out of training and ranked alone."""
        cold = np.arange(48, 60)
        warm = split.train.select(~np.isin(split.train.item, cold))
        shared, _ = recommender.fit(warm, 3, 1, self.features)
        scores = recommender.score(shared, {}, warm.batch(np.arange(warm.n_users)))[:, cold]
        best = cold[np.argsort(-scores, axis=1)[:, :3]] % 4
        assert (best == np.arange(warm.n_users)[:, None] % 4).mean() > 0.85

    def test_untrained_it_goes_by_likeness(self, recommender, split: Split) -> None:
        """Zero-shot: no one has trained anything."""
        shared = recommender.init_shared(60, 0, self.features)
        batch = split.batch(split.train)
        assert self.recall_at_9(recommender.score(shared, {}, batch), batch, split) > 0.4


@pytest.mark.parametrize("kind", ["content", "text_sequence", "two_tower"])
def test_features_of_another_width_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="60 x 12: expected 60 x 5"):
        model(kind, features=5).init_shared(60, 0, described())
    with pytest.raises(ConfigError, match="none: expected 60 x 5"):
        model(kind, features=5).init_shared(60, 0)


def chains(n_users: int = 60, n_items: int = 20, length: int = 8) -> Split:
    """Item i is always followed by i + 1 (modulo I); everyone starts somewhere."""
    from fedrec.core.interactions import Interactions

    rng = np.random.default_rng(5)
    user = np.repeat(np.arange(n_users), length)
    item = (rng.integers(n_items, size=n_users)[:, None] + np.arange(length)).reshape(-1) % n_items
    ids = np.array([f"i{k:02d}" for k in range(n_items)])
    everything = Interactions.from_columns(user, ids[item], item_ids=ids)
    age = everything.batch(np.arange(n_users)).age
    return Split(everything.select(age > 0), None, everything.select(age == 0))


@pytest.mark.parametrize(
    ("kind", "epochs", "own", "bound"),
    [
        ("sasrec", 25, {}, 0.9),
        ("gru4rec", 25, {}, 0.9),
        # It asks for few events in an epoch, and needs more of them.
        ("bert4rec", 60, {"blocks": 1}, 0.8),
    ],
)
def test_what_always_follows_is_found(kind: str, epochs: int, own: dict[str, int], bound: float) -> None:
    """Chance is .05. Of six seeds BERT4Rec ends between .80 and 1, the others above .92; a mean of three is asked."""
    split = chains(n_users=240)
    assert split.test is not None
    server = {"name": "adam", "learning_rate": 0.01}
    recommender = model(
        kind, embedding_size=16, max_length=8, dropout=0.0, server=server, batch_users=30, **own
    )
    found = []
    for seed in (1, 2, 3):
        shared, local = recommender.fit(split.train, seed, epochs)
        best = recommender.score(shared, local, split.batch(split.train)).argmax(axis=1)
        found.append((best == split.batch(split.test).item).mean())
    assert np.mean(found) > bound


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "two_tower"])
def test_a_hidden_state_does_not_see_what_comes_later(kind: str) -> None:
    import torch

    recommender = model(kind, embedding_size=8, max_length=6, dropout=0.0)
    shared = recommender.init_shared(10, 0)
    rng = np.random.default_rng(0)
    params = {
        name: torch.from_numpy(v + rng.normal(size=v.shape).astype(np.float32)) for name, v in shared.items()
    }
    params = {name: values.expand(2, *values.shape) for name, values in params.items()}
    x = torch.from_numpy(rng.normal(size=(2, 6, 8)).astype(np.float32))
    x[1, :4] = x[0, :4]
    real = torch.ones(2, 6)
    states = recommender.encode(params, x, real, None)
    assert torch.allclose(states[0, :4], states[1, :4], atol=1e-6)
    assert not torch.allclose(states[0, 4:], states[1, 4:], atol=1e-3)


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "bert4rec", "two_tower"])
def test_padding_in_front_changes_nothing(kind: str) -> None:
    """Scored beside someone with a longer history or alone: the same."""
    recommender = model(kind, embedding_size=8, max_length=10, dropout=0.0)
    split = chains(n_users=12)
    shared = {
        name: values + np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
        for name, values in recommender.init_shared(20, 0).items()
    }
    batch = split.train.select(np.arange(len(split.train)) >= 5).batch(np.arange(12))
    assert len(set(batch.counts.tolist())) > 1
    together = recommender.score(shared, {}, batch)
    alone = recommender.score(shared, {}, batch.take(np.array([0])))
    np.testing.assert_allclose(together[0], alone[0], atol=1e-4)


def test_dropout_is_the_same_at_the_end_whatever_stands_in_front() -> None:
    from fedrec.neural.dropout import dropout_masks

    keys = np.array([3, 2**63], dtype=np.uint64)
    long = dropout_masks(keys, 2, 9, 5, 0.25)
    np.testing.assert_array_equal(long[:, :, -4:], dropout_masks(keys, 2, 4, 5, 0.25))
    np.testing.assert_array_equal(long[:, 1:], dropout_masks(keys[1:], 2, 9, 5, 0.25))
    many = dropout_masks(np.arange(50, dtype=np.uint64), 3, 40, 16, 0.25)
    assert set(np.unique(many).tolist()) == {0.0, np.float32(1 / 0.75)}
    assert abs((many == 0).mean() - 0.25) < 0.005
    assert abs(np.corrcoef(many[0, 0].reshape(-1), many[0, 1].reshape(-1))[0, 1]) < 0.15


def test_constants_are_neither_sent_nor_moved(split: Split) -> None:
    features = described()
    recommender = model("two_tower", features=12, **SMALL)
    shared = recommender.init_shared(60, 3, features)
    assert FEATURES not in recommender.layout(60).blocks
    assert not any(name.endswith(FEATURES) for name in recommender.init_server(shared))
    after, _ = recommender.fit(split.train, 3, 2, features)
    np.testing.assert_array_equal(after[FEATURES], features)


def test_weight_decay_shrinks_what_no_gradient_holds() -> None:
    server = ServerOptimizer(name="sgd", learning_rate=0.5)
    recommender = model("gru4rec", embedding_size=4, server=server, weight_decay=0.1)
    shared = recommender.init_shared(5, 0)
    from fedrec.core.updates import UpdateSum

    after, _ = recommender.apply(shared, {}, UpdateSum(recommender.layout(5).zeros(), users=1))
    np.testing.assert_allclose(after["item_table"], shared["item_table"] * 0.95, rtol=1e-6)


def test_new_users_are_folded_in_as_if_each_were_alone(split: Split) -> None:
    """A population of them goes through in pieces; who else is in a piece, and in which order, changes nothing."""
    recommender = model("gmf", embedding_size=4, device={"learning_rate": 0.1})
    shared = recommender.init_shared(split.train.n_items, 0)
    everyone = split.train.batch(np.arange(split.train.n_users))
    together = recommender.fold_in(shared, everyone)["gmf/user"]
    assert recommender.chunk_users < len(everyone)
    for user in (0, 17, 93):
        alone = recommender.fold_in(shared, everyone.take(np.array([user])))["gmf/user"]
        np.testing.assert_allclose(together[user], alone[0], atol=1e-6)
