"""Local views: which rows a user touches and which examples it trains on, the same alone or among others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, ragged, seeds

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, bits, key, user_keys
from fedrec.neural.views import LocalViews, build_views


def items_of(views: LocalViews, user: int) -> np.ndarray:
    """[G, 1 + n] the examples of a user as items."""
    rows = views.row[views.row_ptr[user] : views.row_ptr[user + 1]]
    return rows[views.slot[views.example_ptr[user] : views.example_ptr[user + 1]]]


def rows_of(views: LocalViews, user: int) -> np.ndarray:
    return views.row[views.row_ptr[user] : views.row_ptr[user + 1]]


class Stream:
    """Numbers below n from the upper 32 bits of a user's draws, in Python."""

    def __init__(self, purpose: Purpose, seed: int, round_: int, user: int) -> None:
        self._draws = iter(bits(user_keys(key(seed, purpose, round_), np.array([user])), 20_000)[0].tolist())

    def below(self, n: int) -> int:
        return ((next(self._draws) >> 32) * n) >> 32


def written_out(
    history: list[int], user: int, seed: int, round_: int, n_items: int, n: int, epochs: int
) -> list[list[int]]:
    """The examples as the documentation says: Fisher and Yates, then draws rejected while they are own items."""
    shuffle, negative = (
        Stream(Purpose.SHUFFLE, seed, round_, user),
        Stream(Purpose.NEGATIVE, seed, round_, user),
    )
    order, out = list(history), []
    for _ in range(epochs):
        for j in range(len(order) - 1, 0, -1):
            k = shuffle.below(j + 1)
            order[j], order[k] = order[k], order[j]
        for positive in order:
            group = [positive]
            while len(group) <= n:
                candidate = negative.below(n_items)
                if candidate not in history:
                    group.append(candidate)
            out.append(group)
    return out


@given(seed=seeds, n_users=st.integers(1, 6), negatives=st.integers(1, 5), epochs=st.integers(1, 3))
@quick
def test_positives_once_per_epoch_and_no_own_item_among_negatives(
    seed: int, n_users: int, negatives: int, epochs: int
) -> None:
    n_items = 40
    batch = ragged(np.random.default_rng(seed), n_users, n_items, 25)
    views = build_views(batch, seed, 3, n_items, negatives, epochs)
    np.testing.assert_array_equal(views.example_ptr, batch.indptr * epochs)
    for user in range(n_users):
        history = batch.item[batch.indptr[user] : batch.indptr[user + 1]]
        examples = items_of(views, user)
        assert examples.shape == (len(history) * epochs, 1 + negatives)
        for epoch in np.split(examples, epochs):
            assert sorted(epoch[:, 0]) == sorted(history)
        assert not np.isin(examples[:, 1:], history).any()
        rows = rows_of(views, user)
        assert len(np.unique(rows)) == len(rows), "a row is there once"
        assert set(rows) == set(examples.ravel()) | set(history), "and only if it is used"
        assert ((rows >= 0) & (rows < n_items)).all()


@given(seed=seeds, negatives=st.integers(1, 4), epochs=st.integers(1, 3), round_=st.integers(0, 10**6))
@quick
def test_examples_are_those_of_the_written_out_algorithm(
    seed: int, negatives: int, epochs: int, round_: int
) -> None:
    batch = ragged(np.random.default_rng(seed), 3, 30, 12)
    views = build_views(batch, seed, round_, 30, negatives, epochs)
    for u, user in enumerate(batch.user.tolist()):
        history = batch.item[batch.indptr[u] : batch.indptr[u + 1]].tolist()
        expected = written_out(history, user, seed, round_, 30, negatives, epochs)
        assert items_of(views, u).tolist() == expected


@given(seed=seeds, n_users=st.integers(2, 8), data=st.data())
@quick
def test_a_view_is_the_same_alone_and_in_any_batch(seed: int, n_users: int, data: st.DataObject) -> None:
    batch = ragged(np.random.default_rng(seed), n_users, 50, 20)
    whole = build_views(batch, seed, 1, 50, 4, 2)
    chosen = data.draw(st.lists(st.integers(0, n_users - 1), min_size=1, max_size=n_users, unique=True))
    part = build_views(batch.take(np.array(chosen)), seed, 1, 50, 4, 2)
    for position, user in enumerate(chosen):
        np.testing.assert_array_equal(items_of(part, position), items_of(whole, user))
        np.testing.assert_array_equal(rows_of(part, position), rows_of(whole, user))


def test_rounds_seeds_and_users_see_other_examples() -> None:
    batch = ragged(np.random.default_rng(0), 2, 2000, 0)
    item = np.arange(60, dtype=np.int64)
    batch = UserBatch(
        batch.user, np.array([0, 60, 120]), np.concatenate([item, item]), np.ones(120, np.float32)
    )
    views = [build_views(batch, seed, round_, 2000, 4, 2) for seed, round_ in ((1, 1), (1, 2), (2, 1))]
    examples = [items_of(view, user).tolist() for view in views for user in (0, 1)]
    assert all(a != b for i, a in enumerate(examples) for b in examples[:i])
    first, second = np.split(items_of(views[0], 0), 2)
    assert first.tolist() != second.tolist(), "each epoch is shuffled anew"


def test_negatives_are_uniform_over_what_the_user_does_not_have() -> None:
    n_items, own = 20, np.array([3, 4, 11], dtype=np.int64)
    users = 3000
    batch = UserBatch(
        np.arange(users, dtype=np.int64),
        np.arange(users + 1, dtype=np.int64) * 3,
        np.tile(own, users),
        np.ones(3 * users, dtype=np.float32),
    )
    views = build_views(batch, 8, 1, n_items, 4, 1)
    negatives = np.concatenate([items_of(views, u)[:, 1:].ravel() for u in range(users)])
    counts = np.delete(np.bincount(negatives, minlength=n_items), own)
    expected = len(negatives) / (n_items - 3)
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < 16 + 5 * np.sqrt(2 * 16)


def test_users_with_almost_or_all_of_the_catalogue_end() -> None:
    n_items = 50
    histories = [np.delete(np.arange(n_items), 17), np.arange(n_items), np.zeros(0)]
    indptr = np.concatenate([[0], np.cumsum([len(h) for h in histories])])
    item = np.concatenate(histories).astype(np.int64)
    batch = UserBatch(np.arange(3, dtype=np.int64), indptr, item, np.ones(len(item), dtype=np.float32))
    views = build_views(batch, 0, 0, n_items, 4, 2)
    almost = items_of(views, 0)[:, 1:]
    # 100 tries per negative find the only free item with probability 87 %.
    assert 0.75 < (almost == 17).mean() < 0.97
    assert ((items_of(views, 1) >= 0) & (items_of(views, 1) < n_items)).all()
    assert len(rows_of(views, 1)) == n_items
    assert items_of(views, 2).shape == (0, 5)
    assert len(rows_of(views, 2)) == 0


def test_a_batch_of_no_one() -> None:
    no_one = UserBatch(
        np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    )
    views = build_views(no_one, 0, 0, 10, 4, 1)
    assert views.slot.shape == (0, 5)
    assert views.row.shape == (0,)
