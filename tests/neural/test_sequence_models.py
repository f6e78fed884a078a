"""What models of the next item learn from: windows, hidden events, and the two losses over the catalogue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.neural._sequence_task import ItemInPlace
from fedrec.neural.batched import views
from fedrec.neural.sequence import Lesson, SequenceRecommender, windows_of
from fedrec.recommenders.registry import build, parse

N_ITEMS = 40


def model(kind: str = "sasrec", **values: object) -> SequenceRecommender:
    small = {"embedding_size": 8, "max_length": 6, "dropout": 0.0}
    out = build(parse({"kind": kind} | small | values))
    assert isinstance(out, SequenceRecommender)
    return out


def histories(*lengths: int, first_user: int = 0) -> UserBatch:
    """Histories that count up, so that an item tells its place."""
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    item = np.concatenate([np.arange(n) for n in lengths]) % N_ITEMS
    users = np.arange(first_user, first_user + len(lengths))
    return UserBatch(users, indptr, item.astype(np.int64), np.zeros(len(item), np.float32))


def work_of(recommender: SequenceRecommender, batch: UserBatch, key: RoundSeed) -> ItemInPlace:
    work, _ = recommender.work(batch, key, N_ITEMS, {})
    assert isinstance(work, ItemInPlace)
    return work


# Windows -----------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), length=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_window_is_the_latest_events_at_the_right(lengths: list[int], length: int) -> None:
    windows = windows_of(histories(*lengths), length)
    for n, item, real in zip(lengths, windows.item, windows.real, strict=True):
        kept = min(n, length)
        assert item[real].tolist() == [k % N_ITEMS for k in range(n - kept, n)]
        assert real.tolist() == [False] * (windows.length - kept) + [True] * kept


def read_by(recommender: SequenceRecommender, batch: UserBatch, key: RoundSeed, user: int) -> list[int]:
    p = work_of(recommender, batch, key).passes[0]
    return [int(item) for item in p.read[user][p.real[user] > 0]]


@given(seed=st.integers(0, 2**32), round_=st.integers(1, 500))
@settings(max_examples=25, deadline=None)
def test_a_window_depends_on_seed_round_and_user_alone(seed: int, round_: int) -> None:
    batch, key = histories(30, 5, 30, 18), RoundSeed(seed, round_)
    for user in range(len(batch)):
        together = read_by(model(), batch, key, user)
        assert together == read_by(model(), batch.take(np.array([user])), key, 0)
        assert together == list(range(together[0], together[0] + len(together)))
        assert together[-1] < batch.counts[user] - 1 and len(together) == min(6, batch.counts[user] - 1)


def test_rounds_and_users_see_other_windows_and_all_of_them() -> None:
    batch = histories(12, 12)
    starts = [[read_by(model(), batch, RoundSeed(1, r), user)[0] for r in range(300)] for user in (0, 1)]
    for own in starts:
        assert (np.bincount(own, minlength=6) > 25).all() and max(own) == 5
    assert np.mean(np.equal(*starts)) < 0.35


def test_the_latest_window_is_the_same_in_every_round() -> None:
    latest = model(windows="latest")
    seen = {tuple(read_by(latest, histories(12), RoundSeed(1, r), 0)) for r in range(20)}
    assert seen == {(5, 6, 7, 8, 9, 10)}


def test_the_next_item_is_asked_for_behind_every_event() -> None:
    p = work_of(model(), histories(4, 1), RoundSeed(0, 1)).passes[0]
    assert p.read.tolist()[0] == [0, 1, 2] and p.target.tolist()[0] == [1, 2, 3]
    assert p.learned.tolist() == [[1, 1, 1], [0, 0, 0]]


# Hidden events -----------------------------------------------------------------------------------------


def lessons(rounds: int, **values: object) -> list[Lesson]:
    recommender, batch = model("bert4rec", **values), histories(9, 3, 0)
    window = windows_of(batch, 7)
    return [recommender.lesson(window, batch, RoundSeed(4, r), 0) for r in range(rounds)]


def test_hidden_events_are_asked_for_and_never_shown_nor_padding() -> None:
    for lesson in lessons(50):
        assert lesson.hidden is not None
        np.testing.assert_array_equal(lesson.hidden, lesson.learned)
        assert not (lesson.learned & ~lesson.real).any() and not lesson.learned[2].any()


def test_as_many_are_hidden_as_said_and_the_latest_more_often() -> None:
    hidden = np.mean([lesson.learned for lesson in lessons(2000, hidden_share=0.2)], axis=0)
    np.testing.assert_allclose(hidden[0, :-1], 0.2, atol=0.04)
    np.testing.assert_allclose(hidden[1, -3:-1], 0.2, atol=0.04)
    np.testing.assert_allclose(hidden[:2, -1], 1 - 0.8 * 0.5, atol=0.04)


def test_what_is_hidden_depends_on_the_user_alone() -> None:
    """Beside a longer history a window is padded; its own events are hidden as before."""
    recommender, key = model("bert4rec"), RoundSeed(4, 7)
    both, one = histories(9, 3), histories(9, 3).take(np.array([1]))
    padded = recommender.lesson(windows_of(both, 7), both, key, 0)
    alone = recommender.lesson(windows_of(one, 7), one, key, 0)
    np.testing.assert_array_equal(padded.learned[1, -3:], alone.learned[0])


def test_a_hidden_event_does_not_reach_the_loss() -> None:
    """Whatever stands where an event is hidden, the state there is the same."""
    recommender = model("bert4rec")
    batch = histories(7)
    params = views(*recommender.split(recommender.init_shared(N_ITEMS, 0)), {}, None, 1)
    work = work_of(recommender, batch, RoundSeed(4, 2))
    p = work.passes[0]
    assert p.hidden is not None and 0 < int(p.hidden.sum()) < 7
    other = replace(p, read=torch.where(p.hidden, (p.read + 11) % N_ITEMS, p.read))
    one, two = (replace(work, passes=[q]).loss(params, 0) for q in (p, other))
    torch.testing.assert_close(one, two)


# Losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "bert4rec"])
def test_with_every_item_as_negative_the_sampled_loss_is_the_full_one(kind: str) -> None:
    batch, key = histories(9, 4, 0), RoundSeed(2, 5)
    recommender = model(kind)
    rng = np.random.default_rng(3)
    shared = {
        name: values + 0.3 * rng.normal(size=values.shape).astype(np.float32)
        for name, values in recommender.init_shared(N_ITEMS, 0).items()
    }
    params = views(*recommender.split(shared), {}, None, len(batch))
    full = work_of(recommender, batch, key)
    everything = torch.arange(N_ITEMS).expand(len(batch), -1)
    sampled = replace(full, passes=[replace(full.passes[0], negative=everything)], sampled_share=0.0)
    torch.testing.assert_close(sampled.loss(params, 0), full.loss(params, 0), rtol=1e-5, atol=1e-5)


def test_the_sampled_loss_is_right_on_average() -> None:
    """Its gradient points where that of the full loss does, once many draws are averaged."""
    batch = histories(9)
    gradients = {}
    for loss, rounds in (("full", 1), ("sampled", 400)):
        recommender = model(loss=loss, negatives=8, windows="latest")
        shared = recommender.init_shared(N_ITEMS, 0)
        layout = recommender.layout(N_ITEMS)
        gradients[loss] = np.mean(
            [
                recommender.compute_updates(shared, {}, batch, RoundSeed(0, r), N_ITEMS)[0].vector(0, layout)
                for r in range(rounds)
            ],
            axis=0,
        )
    one, two = gradients["full"], gradients["sampled"]
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.99
    assert np.linalg.norm(two) == pytest.approx(np.linalg.norm(one), rel=0.1)


def test_popularity_does_not_find_what_follows() -> None:
    """The chains of the neural models' tests ask for order: counting finds no more of them than chance."""
    from test_neural_models import chains

    data = chains()
    assert data.test is not None
    popularity = build(parse({"kind": "popularity"}))
    shared, local = popularity.fit(data.train, 1, 1)
    batch = data.batch(data.train)
    scores = popularity.score(shared, local, batch)
    scores[batch.row, batch.item] = -np.inf
    assert (scores.argmax(axis=1) == data.batch(data.test).item).mean() < 0.35


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec", "text_sequence"])
def test_heads_that_do_not_part_the_width_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="embedding_size 8 and heads 3: expected a multiple of the heads"):
        model(kind, heads=3, **({"features": 4} if kind == "text_sequence" else {}))
