"""Personalisation levels: what stays on the device, where it must help, and where it must not be believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, ragged, seeds

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import Interactions, UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.neural.head import SHIFT, TURN
from fedrec.neural.recommender import NeuralRecommender
from fedrec.recommenders.registry import build, parse
from fedrec.recommenders.wrappers.personal import Personalised, _losses, _without_latest
from fedrec.rounds.chain import train_users
from fedrec.testing import RecommenderContract, train

LEVELS = ("fedper", "fedrep", "fedrecon", "mixed")
ADAM = {"name": "adam", "learning_rate": 0.02}
SASREC = {
    "kind": "sasrec",
    "embedding_size": 16,
    "max_length": 12,
    "blocks": 1,
    "dropout": 0.1,
    "server": ADAM,
    "batch_users": 30,
}
GMF = {
    "kind": "gmf",
    "embedding_size": 8,
    "device": {"learning_rate": 0.1},
    "server": ADAM,
    "batch_users": 30,
}

#: User vectors that begin anew in each round need longer steps of the server, or more rounds.
QUICKER = {"server": {"name": "adam", "learning_rate": 0.05}}


def model(base: dict[str, object], level: str | None = None, **values: object) -> NeuralRecommender:
    personal = {"personal": {"level": level, **values}} if level else {}
    recommender = build(parse(base | personal))
    assert isinstance(recommender, NeuralRecommender)
    return recommender


class TestFedPer(RecommenderContract):
    rounds = 40

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(
            SASREC, "fedper", parameters=["last/scale", "last/shift"], device={"learning_rate": 0.02}
        )


@pytest.mark.slow
class TestFedRep(RecommenderContract):
    rounds = 40

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(SASREC, "fedrep", steps=2, device={"learning_rate": 0.02})


@pytest.mark.slow
class TestFedRepWithUserVectors(RecommenderContract):
    rounds = 40

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(GMF, "fedrep", steps=2, device={"learning_rate": 0.1})


@pytest.mark.slow
class TestFedRecon(RecommenderContract):
    rounds = 40

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(SASREC | {"loss": "sampled", "negatives": 20}, "fedrecon", steps=2)


@pytest.mark.slow
class TestFedReconOfUserVectors(RecommenderContract):
    rounds = 30

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(GMF | QUICKER, "fedrecon", device={"name": "adam", "learning_rate": 0.1})


class TestMixed(RecommenderContract):
    rounds = 40

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls) -> Recommender:
        return model(SASREC, "mixed")


# What stays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("base", [SASREC, SASREC | {"kind": "two_tower"}], ids=["sasrec", "two_tower"])
def test_what_is_personal_is_never_sent(level: str, base: dict[str, object]) -> None:
    base = {name: value for name, value in base.items() if name != "blocks" or base["kind"] == "sasrec"}
    recommender, plain = model(base, level), model(base)
    assert recommender.layout(60).blocks.keys() == plain.layout(60).blocks.keys()
    assert {TURN, SHIFT} <= recommender.parameters().keys()
    stored = recommender.init_local(np.arange(3), 0)
    assert set(stored) == ({TURN, SHIFT} if level in ("fedper", "fedrep") else set())


def test_named_parameters_leave_the_shared_state() -> None:
    recommender = model(SASREC, "fedper", parameters=["last/scale"])
    assert "last/scale" not in recommender.layout(60).blocks
    assert "last/scale" not in recommender.init_shared(60, 0)
    np.testing.assert_array_equal(recommender.init_local(np.arange(2), 0)["last/scale"], np.ones((2, 16)))


@pytest.mark.parametrize("level", LEVELS)
def test_untrained_it_scores_as_the_shared_model(level: str, split: Split) -> None:
    """The head begins as the identity."""
    plain = model(SASREC)
    batch = split.batch(split.train)
    shared = plain.init_shared(60, 1)
    heads = model(SASREC, "fedper").init_local(batch.user, 1)
    expected = plain.score(shared, {}, batch)
    got = model(SASREC, "fedper").score(shared, heads, batch)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("level", ["fedrecon", "mixed"])
def test_scores_without_stored_state_are_a_function_of_the_history(level: str, split: Split) -> None:
    recommender = model(SASREC, level)
    shared = recommender.init_shared(60, 1)
    batch = split.batch(split.train)
    alone = recommender.score(shared, {}, batch.take(np.array([7])))
    together = recommender.score(shared, {}, batch.take(np.array([2, 7, 30])))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-4)


def test_mixing_leaves_training_as_it_was(split: Split) -> None:
    """Neither updates nor the baseline know of what is tuned later."""
    mixed, plain = model(SASREC, "mixed"), model(SASREC)
    for learn in (lambda model: train(model, split.train, 3), lambda model: model.fit(split.train, 1, 1)):
        shared, same = learn(plain)[0], learn(mixed)[0]
        for name, values in shared.items():
            np.testing.assert_array_equal(values, same[name])


@pytest.mark.parametrize("level", ["fedper", "fedrep", "fedrecon"])
def test_a_round_with_everyone_is_a_step_of_the_baseline(level: str, split: Split) -> None:
    plain = {"server": {"name": "sgd", "learning_rate": 1.0}}
    recommender = model(SASREC | plain, level, steps=2)
    batch = split.train.batch(np.arange(split.train.n_users))
    shared, key = recommender.init_shared(60, 3), RoundSeed(3, 1)
    # A device adds its learning rate to the personal part by other rules than the server: start from something.
    local = {
        name: values + 0.1 * np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
        for name, values in recommender.init_local(batch.user, 3).items()
    }
    total, after = train_users(recommender, shared, local, batch, key, None, 60)
    federated, _ = recommender.apply(shared, {}, total)
    own = {name: values.copy() for name, values in local.items()}
    central, _ = recommender.minibatch(shared, {}, own, batch.user, batch, key)
    for name, values in federated.items():
        np.testing.assert_allclose(values, central[name], atol=1e-5, err_msg=name)
    for name, values in after.items():
        np.testing.assert_allclose(values, own[name], atol=1e-5, err_msg=name)


def test_in_fedrep_the_body_learns_beside_a_head_that_has_learned(split: Split) -> None:
    """The same round: the loss that the body meets is lower than where both move at once."""
    batch = split.train.batch(np.arange(40))
    loss = {}
    for level in ("fedper", "fedrep"):
        recommender = model(SASREC, level, steps=8, device={"name": "adam", "learning_rate": 0.05})
        shared, local = train(model(SASREC), split.train, 5)[0], recommender.init_local(batch.user, 0)
        updates, _ = recommender.compute_updates(shared, local, batch, RoundSeed(0, 1), 60)
        loss[level] = updates.loss.sum()
    assert loss["fedrep"] < 0.95 * loss["fedper"]


# Halves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [SASREC, SASREC | {"loss": "sampled", "negatives": 5}, GMF, GMF | {"kind": "neumf"}],
    ids=["full", "sampled", "gmf", "neumf"],
)
@given(seed=seeds)
@quick
def test_halves_share_no_event_and_leave_none_out(base: dict[str, object], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = ragged(rng, 5, 30, 9)
    recommender = model(base | {"init_scale": 0.5})
    shared = recommender.init_shared(30, seed)
    work, touched = recommender.work(batch, RoundSeed(seed, 1), 30, shared)
    from fedrec.neural.batched import views

    tables, dense = recommender.split(shared)
    params = views(tables, dense, recommender.init_local(batch.user, seed), touched, len(batch))
    older, newer = work.half(newer=False), work.half(newer=True)  # type: ignore[attr-defined]
    np.testing.assert_allclose(older.examples + newer.examples, work.examples)
    assert (newer.examples >= older.examples).all()
    each = 1 if base["kind"] == "sasrec" else 1 + 4
    assert (newer.examples - older.examples <= each).all()
    if work.steps != 1:
        return
    parts = torch.stack([half.loss(params, 0) for half in (older, newer) if half.steps]).sum(0)
    torch.testing.assert_close(parts, work.loss(params, 0), rtol=1e-4, atol=1e-5)


def test_reconstruction_never_sees_the_events_that_the_body_learns_from(split: Split) -> None:
    """Other newest events change the body's update and leave the reconstructed part as it was."""
    recommender = model(SASREC | {"dropout": 0.0}, "fedrecon", steps=3)
    shared = train(model(SASREC), split.train, 3)[0]
    history = np.arange(10)
    batch = UserBatch(np.array([3]), np.array([0, 10]), history, np.ones(10, dtype=np.float32))
    work = recommender.work(batch, RoundSeed(0, 1), 60, shared)[0]
    learned = [p.learned[0].numpy() for half in (False, True) for p in work.half(newer=half).passes]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(learned[0], [1, 1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(learned[1], [0, 0, 0, 0, 1, 1, 1, 1, 1])


# Where it must help, and where not -----------------------------------------------------------------------


QUESTIONS = 4


def answered(question: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Item ids 0 to 3 are questions, 4 to 7 their answers; users of odd number answer the other way round."""
    return QUESTIONS + (question + QUESTIONS // 2 * (user % 2)) % QUESTIONS


def opposite(n_users: int = 60, pairs: int = 16) -> Interactions:
    """Questions in random order, each followed by the user's answer; the last question is left open.

    All have seen the same questions and answers; one block of attention cannot tell which answer followed which.
    """
    user = np.arange(n_users)
    question = np.random.default_rng(2).integers(QUESTIONS, size=(n_users, pairs))
    item = np.stack([question, answered(question, user[:, None])], axis=2).reshape(n_users, -1)[:, :-1]
    ids = np.array([f"i{k}" for k in range(2 * QUESTIONS)])
    return Interactions.from_columns(np.repeat(user, item.shape[1]), ids[item.reshape(-1)], item_ids=ids)


QUIZ = SASREC | {
    "max_length": 32,
    "dropout": 0.0,
    "fold_in_epochs": 30,
    "server": {"name": "adam", "learning_rate": 0.015},
}
JOINTLY = {"learning_rate": 0.2}
QUIZ_ROUNDS = 80
#: Where one run ends depends on the last bit of each product, so on the processor; a mean over seeds hardly does.
QUIZ_SEEDS = (3, 4, 5)


def right(recommender: NeuralRecommender, quiz: Interactions, shared: State, local: State) -> float:
    """Share of right answers when each user is asked each question last. Chance among the two answers: one half."""
    batch = quiz.batch(np.arange(quiz.n_users))
    hits = []
    for question in range(QUESTIONS):
        item = batch.item.copy()
        item[batch.indptr[1:] - 1] = question
        best = recommender.score(shared, local, replace(batch, item=item)).argmax(axis=1)
        hits.append(best == answered(np.array(question), batch.user))
    return float(np.mean(hits))


@pytest.fixture(scope="module")
def quiz() -> Interactions:
    return opposite()


@pytest.fixture(scope="module")
def jointly(quiz: Interactions) -> list[tuple[State, State]]:
    """Shared state and heads that have learned in the same steps, of each seed."""
    return [train(model(QUIZ, "fedper", device=JOINTLY), quiz, QUIZ_ROUNDS, seed) for seed in QUIZ_SEEDS]


@pytest.mark.slow
def test_opposite_tastes_need_a_personal_part(quiz: Interactions, jointly: list[tuple[State, State]]) -> None:
    """A shared model can but guess; a head that learns jointly, or first, learns who is who."""
    plain, fedper = model(QUIZ), model(QUIZ, "fedper", device=JOINTLY)
    fedrep = model(QUIZ, "fedrep", steps=3, device=JOINTLY)
    guesses, first = (
        [right(each, quiz, *train(each, quiz, QUIZ_ROUNDS, seed)) for seed in QUIZ_SEEDS]
        for each in (plain, fedrep)
    )
    assert np.mean(guesses) < 0.6
    assert np.mean([right(fedper, quiz, *learned) for learned in jointly]) > 0.85
    assert np.mean(first) > 0.85


@pytest.mark.slow
def test_a_tuned_head_is_trusted_where_it_is_right(
    quiz: Interactions, jointly: list[tuple[State, State]]
) -> None:
    """Of a body that has learned to be turned, its own head is not stored: tuning finds it again."""
    device = {"name": "adam", "learning_rate": 0.03}

    def mean_right(recommender: NeuralRecommender) -> float:
        return float(np.mean([right(recommender, quiz, shared, {}) for shared, _ in jointly]))

    assert mean_right(model(QUIZ)) < 0.6
    assert mean_right(model(QUIZ, "mixed", device=device, weights=[1.0])) > 0.85
    assert mean_right(model(QUIZ, "mixed", device=device, evaluated=6)) > 0.75


def test_without_its_reconstruction_a_user_vector_knows_nothing(split: Split) -> None:
    plain = model(GMF)
    recommender = model(GMF | QUICKER, "fedrecon", device={"name": "adam", "learning_rate": 0.1})
    batch = split.batch(split.train)
    untrained = plain.init_local(batch.user, 0)
    blind, found = [], []
    for seed in (3, 4, 5):
        shared, _ = train(recommender, split.train, 30, seed)
        for recalls, scores in (
            (blind, plain.score(shared, untrained, batch)),
            (found, recommender.score(shared, {}, batch)),
        ):
            recalls.append(RecommenderContract.recall_at_9(scores, batch, split))
    assert np.mean(blind) < 0.3 < 0.5 < np.mean(found)


def alike(n_users: int = 200, length: int = 5) -> tuple[Interactions, Interactions]:
    """Everyone draws from the same popularity: nothing is personal, and histories are tiny. Train and test part."""
    rng = np.random.default_rng(8)
    share = 1.0 / np.arange(1, 41)
    item = np.concatenate(
        [rng.choice(40, length + 1, replace=False, p=share / share.sum()) for _ in range(n_users)]
    )
    ids = np.array([f"i{k:02d}" for k in range(40)])
    everything = Interactions.from_columns(np.repeat(np.arange(n_users), length + 1), ids[item], item_ids=ids)
    age = everything.batch(np.arange(n_users)).age
    return everything.select(age > 0), everything.select(age == 0)


TINY = SASREC | {"max_length": 5, "dropout": 0.0, "fold_in_epochs": 40}


def test_where_nothing_is_personal_tuning_hurts_and_a_chosen_weight_limits_the_harm() -> None:
    known, asked = alike()
    shared, _ = train(model(TINY), known, 30)
    batch, target = known.batch(np.arange(200)), asked.item

    def log_loss(recommender: NeuralRecommender) -> float:
        scores = torch.from_numpy(recommender.score(shared, {}, batch))
        return float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(target)))

    device = {"name": "adam", "learning_rate": 0.05}
    plain = log_loss(model(TINY))
    tuned = log_loss(model(TINY, "mixed", device=device, weights=[1.0]))
    chosen = log_loss(model(TINY, "mixed", device=device))
    assert tuned > plain + 0.2
    assert chosen - plain < 0.5 * (tuned - plain)


def test_no_one_who_has_nothing_to_spare_is_tuned() -> None:
    recommender, plain = model(SASREC, "mixed"), model(SASREC)
    shared = plain.init_shared(60, 0)
    batch = UserBatch(np.array([1]), np.array([0, 3]), np.array([4, 5, 6]), np.ones(3, dtype=np.float32))
    np.testing.assert_allclose(
        recommender.score(shared, {}, batch), plain.score(shared, {}, batch), atol=1e-6
    )


# The weight ---------------------------------------------------------------------------------------------


def test_what_is_evaluated_is_the_event_that_comes_next() -> None:
    """Personal scores name item 0: what comes next for the first user, not for the second; the third has nothing."""
    plain = np.zeros((3, 3), dtype=np.float32)
    personal = np.tile(np.array([6.0, 0.0, 0.0], dtype=np.float32), (3, 1))
    batch = UserBatch(
        np.arange(3), np.array([0, 3, 6, 9]), np.array([1, 0, 1, 0, 1, 0, 0, 0, 0]), np.ones(9, np.float32)
    )
    weights = np.array([0.0, 0.5, 1.0], dtype=np.float32)
    loss = _losses(plain, personal, weights, batch, np.array([2, 2, 0]))
    expected = np.array([[0, -3, -6], [0, 0, 0]]).T + np.log(np.exp([0, 3, 6]) + 2)[:, None]
    np.testing.assert_allclose(loss[:, :2], expected, atol=1e-6)
    np.testing.assert_array_equal(loss[:, 2], 0)


@given(seed=seeds, evaluated=st.integers(1, 5))
@quick
def test_what_is_evaluated_on_was_taken_away(seed: int, evaluated: int) -> None:
    batch = ragged(np.random.default_rng(seed), 6, 30, 12)
    latest = np.minimum(evaluated, batch.counts // 4)
    known = _without_latest(batch, latest)
    for user in range(6):
        whole = batch.item[batch.indptr[user] : batch.indptr[user + 1]]
        kept = known.item[known.indptr[user] : known.indptr[user + 1]]
        np.testing.assert_array_equal(kept, whole[: len(whole) - latest[user]])


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "personal", "reason"),
    [
        (SASREC, {"level": "fedper", "parameters": ["nose"]}, "'nose': expected dense parameters"),
        (SASREC, {"level": "fedper", "parameters": ["item_bias"]}, "begin constant"),
        (SASREC, {"level": "fedper", "parameters": ["position"]}, "begin constant"),
        (SASREC, {"level": "mixed", "parameters": ["last/scale"]}, "leave model.personal.parameters empty"),
        (GMF, {"level": "mixed"}, "finds nothing to personalise"),
        ({"kind": "mult_vae"}, {"level": "fedper"}, "finds nothing to personalise"),
        (SASREC | {"local_epochs": 2}, {"level": "fedrecon"}, "local_epochs to 1"),
    ],
)
def test_what_cannot_be_personal_is_refused(
    base: dict[str, object], personal: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(parse(base | {"personal": personal}))


@pytest.mark.parametrize("weights", [[0.5, 0.2], [0.0, 0.0, 1.0], [-0.1, 1.0], [0.0, 1.5]])
def test_weights_to_choose_from_rise_from_0_to_1(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected rising numbers from 0 to 1"):
        parse(SASREC | {"personal": {"level": "mixed", "weights": weights}})


def test_a_model_that_learns_from_the_whole_history_has_no_halves(split: Split) -> None:
    base = {"kind": "mult_vae", "embedding_size": 4, "hidden_size": 8}
    recommender = model(base, "fedrecon", parameters=["read_bias"])
    assert isinstance(recommender, Personalised)
    batch = split.train.batch(np.arange(3))
    with pytest.raises(ConfigError, match="as a whole"):
        recommender.compute_updates(recommender.init_shared(60, 0), {}, batch, RoundSeed(0, 1), 60)
