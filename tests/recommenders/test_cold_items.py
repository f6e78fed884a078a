"""Cold items: what is taken away stays away, and recall among the cold items alone is counted right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import IntArray, Interactions
from fedrec.data.split import Split
from fedrec.data.splits import held_out_users, leave_one_out
from fedrec.evaluation.cold_items import ColdSplit, cold_recall, cold_split


def population(n_users: int = 60, n_items: int = 40, seed: int = 0) -> Interactions:
    """Users with about a third of the items each."""
    owned = np.random.default_rng(seed).random((n_users, n_items)) < 0.3
    owned[:, 0] = True
    user, item = owned.nonzero()
    return Interactions.from_columns(user, item, item_ids=np.arange(n_items).astype(np.str_))


def parts(split: Split) -> list[Interactions]:
    found = (split.train, split.validation, split.test, split.support)
    return [part for part in found if part is not None]


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["whole", "leave_one_out", "held_out_users"]),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 2**32),
)
def test_every_interaction_is_warm_or_a_target(kind: str, fraction: float, seed: int) -> None:
    everything = population()
    source = {
        "whole": lambda: everything,
        "leave_one_out": lambda: leave_one_out(everything),
        "held_out_users": lambda: held_out_users(everything, 0.2, 0.2, seed=1),
    }[kind]()
    split = cold_split(source, fraction, seed)
    assert len(split.items) == round(fraction * 40) and (np.diff(split.items) > 0).all()
    warm = parts(split.warm)
    assert not any(np.isin(part.item, split.items).any() for part in warm)
    assert np.isin(split.target.item, split.items).all()
    assert sum(map(len, warm)) + len(split.target) == len(everything)
    assert all(np.array_equal(part.item_ids, everything.item_ids) for part in [*warm, split.target])
    if isinstance(source, Split):
        assert [part is None for part in (split.warm.validation, split.warm.support)] == [
            part is None for part in (source.validation, source.support)
        ]


def test_the_draw_depends_on_the_seed_alone() -> None:
    everything = population()
    a, b = cold_split(everything, seed=3), cold_split(leave_one_out(everything), seed=3)
    np.testing.assert_array_equal(a.items, b.items)
    assert len({tuple(cold_split(everything, seed=k).items) for k in range(20)}) > 15


def test_items_that_hardly_anyone_has_are_not_drawn() -> None:
    user = [*range(10), *range(10), 0, 1, 2]
    item = [0] * 10 + [1] * 10 + [2] * 3
    everything = Interactions.from_columns(user, item)
    assert {int(k) for s in range(20) for k in cold_split(everything, 0.5, s).items} == {0, 1}
    assert 2 in {int(k) for s in range(20) for k in cold_split(everything, 0.5, s, min_interactions=3).items}


def test_impossible_splits_say_so() -> None:
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            cold_split(population(), fraction)
    with pytest.raises(DataError, match="lower min_interactions"):
        cold_split(population(), min_interactions=1000)


def planted() -> ColdSplit:
    """Four cold items among eight; user 0 asks for one, user 1 for two, user 2 for none, user 3 knows nothing."""
    ids = np.arange(8).astype(np.str_)
    users = np.arange(4).astype(np.str_)
    warm = Interactions.from_columns([0, 1, 2], [0, 1, 2], user_ids=users, item_ids=ids)
    target = Interactions.from_columns([0, 1, 1, 3], [5, 4, 7, 6], user_ids=users, item_ids=ids)
    return ColdSplit(Split(warm, None, None), target, np.array([4, 5, 6, 7]))


def test_recall_counts_what_stands_in_the_list() -> None:
    split = planted()
    assert split.users.tolist() == [0, 1]
    scores = np.zeros((4, 8), dtype=np.float32)
    scores[:, :4] = 100  # warm items are not ranked
    scores[0, 4:] = [4, 3, 2, 1]  # the target of user 0 is second
    scores[1, 4:] = [4, 3, 2, 1]  # those of user 1 are first and last
    at = {k: cold_recall(scores, split, k).value for k in (1, 2, 3, 4)}
    assert at == {1: (0 + 1) / 2, 2: (1 + 0.5) / 2, 3: (1 + 0.5) / 2, 4: 1.0}
    np.testing.assert_equal(cold_recall(scores[:, 4:], split, 2), cold_recall(scores, split, 2))
    assert cold_recall(scores, split, 1).users == 2
    alone = cold_recall(scores[[1]], split, 2, users=np.array([1]))
    assert (alone.value, alone.users) == (0.5, 1)
    assert str(alone) == "0.500 [0.500, 0.500] (1 users; chance 0.500)"


@pytest.mark.parametrize("score", [0.0, np.nan, -np.inf])
def test_a_model_that_says_nothing_scores_nothing(score: float) -> None:
    everything = population()
    split = cold_split(everything, 0.5)
    recall = cold_recall(np.full((60, 40), score, dtype=np.float32), split, 3)
    assert recall.value < recall.chance / 2


def test_knowing_the_answer_is_one_and_guessing_is_chance() -> None:
    everything = population(400, 60)
    split = cold_split(everything, 0.4, seed=5)
    answer = np.zeros((400, 60), dtype=np.float32)
    answer[split.target.user, split.target.item] = 1
    assert cold_recall(answer, split, 5).value == 1
    guesses = [
        cold_recall(np.random.default_rng(100 + k).random((400, 60)), split, 5, replicates=20)
        for k in range(10)
    ]
    assert np.mean([g.value for g in guesses]) == pytest.approx(guesses[0].chance, abs=0.01)


def test_interval_holds_the_chance_value_nearly_always() -> None:
    split = cold_split(population(200, 40), 0.4)
    inside = 0
    for seed in range(60):
        guess = cold_recall(np.random.default_rng(100 + seed).random((200, 40)), split, 4, replicates=200)
        assert guess.low < guess.value < guess.high
        inside += guess.low <= guess.chance <= guess.high
    assert inside >= 51  # 95 % of 60 is 57; fewer than 51 happens once in a thousand times


def test_someone_who_has_an_item_twice_is_asked_for_it_once() -> None:
    user: IntArray = np.repeat(np.arange(10), 4)
    everything = Interactions.from_columns(user, np.tile([0, 1, 1, 2], 10))
    split = next(s for s in (cold_split(everything, 0.4, k) for k in range(50)) if 1 in s.items)
    assert split.target.counts.tolist() == [1] * 10
    assert split.warm.train.counts.tolist() == [2] * 10


def test_scores_that_do_not_fit_are_refused() -> None:
    split = planted()
    for shape in ((4, 5), (4,), (3, 8)):
        with pytest.raises(DataError, match="scores"):
            cold_recall(np.zeros(shape, dtype=np.float32), split)
    with pytest.raises(DataError, match="nothing can be evaluated"):
        cold_recall(np.zeros((1, 8), dtype=np.float32), split, users=np.array([2]))
