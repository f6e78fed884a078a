"""Interactions and batches against plain Python lists of who did what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, ragged, seeds

from fedrec.core.errors import DataError
from fedrec.core.interactions import Catalog, Interactions, UserBatch

rows = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cy", "10", "9"]),
        st.sampled_from(["x", "y", "z", "7"]),
        st.integers(1, 5),
        st.integers(0, 4),
    ),
    max_size=25,
)
Row = tuple[str, str, int, int]


def build(given_rows: list[Row], *, timed: bool = True, **ids: np.ndarray) -> Interactions:
    user, item, value, stamp = zip(*given_rows, strict=True) if given_rows else ((), (), (), ())
    return Interactions.from_columns(
        np.array(user, dtype=str), np.array(item, dtype=str), value, stamp if timed else None, **ids
    )


def written_out(interactions: Interactions) -> list[Row]:
    return [
        (str(interactions.user_ids[u]), str(interactions.item_ids[i]), int(v), int(t))
        for u, i, v, t in zip(
            interactions.user, interactions.item, interactions.value, interactions.timestamp, strict=True
        )
    ]


@given(rows)
@quick
def test_rows_are_sorted_by_user_then_time_then_place_in_the_file(given_rows: list[Row]) -> None:
    made = build(given_rows)
    assert written_out(made) == sorted(given_rows, key=lambda row: (row[0], row[3]))
    assert made.user_ids.tolist() == sorted({row[0] for row in given_rows})
    assert made.item_ids.tolist() == sorted({row[1] for row in given_rows})
    assert made.counts.sum() == made.item_counts.sum() == len(made) == len(given_rows)
    for user in range(made.n_users):
        mine = [row[1] for row in written_out(made) if row[0] == made.user_ids[user]]
        assert made.item_ids[made.history(user)].tolist() == mine


@given(rows)
@quick
def test_without_times_the_order_of_rows_is_the_order_in_time(given_rows: list[Row]) -> None:
    made = build(given_rows, timed=False)
    numbered = [(*row[:3], k) for k, row in enumerate(given_rows)]
    assert written_out(made) == sorted(numbered, key=lambda row: (row[0], row[3]))


def test_numbers_are_ordered_by_value_and_texts_as_texts() -> None:
    assert Interactions.from_columns([10, 9], [2, 11]).user_ids.tolist() == ["9", "10"]
    assert Interactions.from_columns(["10", "9"], ["2", "11"]).item_ids.tolist() == ["11", "2"]


@given(rows, st.permutations(["ann", "bob", "cy", "10", "9", "no one"]))
@quick
def test_given_ids_fix_the_numbering(given_rows: list[Row], users: list[str]) -> None:
    made = build(given_rows, user_ids=np.array(users), item_ids=np.array(["z", "y", "7", "x", "new"]))
    assert made.user_ids.tolist() == users
    assert made.n_items == 5 and made.item_counts[4] == 0
    assert sorted(written_out(made)) == sorted(given_rows)
    assert made.counts[users.index("no one")] == 0


def test_an_unknown_id_is_named() -> None:
    with pytest.raises(DataError, match=r"unknown item id 'w' \(2 rows\): expected one of the 2 known items"):
        Interactions.from_columns(["a", "a", "a"], ["w", "x", "w"], item_ids=np.array(["x", "y"]))
    with pytest.raises(DataError, match="unknown user id 'a'"):
        Interactions.from_columns(["a"], ["x"], user_ids=np.zeros(0, dtype=str))


@pytest.mark.parametrize(
    ("user", "item", "said"),
    [([1, 0], [0, 0], "not sorted"), ([2, 2], [0, 0], "outside user_ids"), ([0, 0], [0, -1], "outside item")],
)
def test_broken_columns_are_refused(user: list[int], item: list[int], said: str) -> None:
    ids = np.array(["a", "b"])
    with pytest.raises(DataError, match=said):
        Interactions(np.array(user), np.array(item), np.ones(2, np.float32), np.zeros(2, np.int64), ids, ids)
    with pytest.raises(DataError, match="different lengths"):
        Interactions(np.array(user), np.array(item), np.ones(3, np.float32), np.zeros(2, np.int64), ids, ids)


@given(rows, st.randoms(use_true_random=False))
@quick
def test_select_keeps_ids_and_compact_drops_the_unused(given_rows: list[Row], random: object) -> None:
    made = build(given_rows)
    mask = np.array([random.random() < 0.5 for _ in range(len(made))], dtype=bool)  # type: ignore[attr-defined]
    part = made.select(mask)
    kept = [row for row, keep in zip(written_out(made), mask, strict=True) if keep]
    assert written_out(part) == kept
    assert part.user_ids.tolist() == made.user_ids.tolist()
    small = part.compact()
    assert written_out(small) == kept
    assert small.user_ids.tolist() == sorted({row[0] for row in kept})
    assert small.item_ids.tolist() == sorted({row[1] for row in kept})


@given(rows, rows)
@quick
def test_merge_puts_the_other_after_self_within_each_user(first: list[Row], second: list[Row]) -> None:
    ids = {"user_ids": np.array(["10", "9", "ann", "bob", "cy"]), "item_ids": np.array(["7", "x", "y", "z"])}
    a, b = build(first, **ids), build(second, **ids)
    merged = a.merge(b)
    assert written_out(merged) == sorted(written_out(a) + written_out(b), key=lambda row: row[0])
    for user in range(5):
        assert merged.history(user).tolist() == [*a.history(user), *b.history(user)]


def test_parts_of_different_sets_do_not_merge() -> None:
    with pytest.raises(DataError, match="merge needs two parts of one data set"):
        build([("ann", "x", 1, 0)]).merge(build([("bob", "x", 1, 0)]))


@given(rows, st.lists(st.integers(0, 4), max_size=8))
@quick
def test_batch_and_take_give_histories_in_the_asked_order(given_rows: list[Row], users: list[int]) -> None:
    made = build(given_rows, user_ids=np.array(["10", "9", "ann", "bob", "cy"]))
    chosen = np.array(users, dtype=np.int64)
    for batch in (made.batch(chosen), made.batch(np.arange(5)).take(chosen)):
        assert batch.user.tolist() == users
        assert batch.counts.tolist() == made.counts[chosen].tolist()
        assert batch.row.tolist() == [k for k, u in enumerate(users) for _ in range(made.counts[u])]
        for k, user in enumerate(users):
            lo, hi = made.indptr[user], made.indptr[user + 1]
            mine = slice(batch.indptr[k], batch.indptr[k + 1])
            assert batch.item[mine].tolist() == made.item[lo:hi].tolist()
            assert batch.value[mine].tolist() == made.value[lo:hi].tolist()


@given(seed=seeds, n_users=st.integers(0, 12), max_entries=st.integers(1, 40), max_users=st.integers(1, 6))
@quick
def test_chunks_are_a_partition_within_bounds(
    seed: int, n_users: int, max_entries: int, max_users: int
) -> None:
    batch = ragged(np.random.default_rng(seed), n_users, 30, 20)
    at, items = 0, []
    for where, piece in batch.chunks(max_entries, max_users):
        assert where.start == at and where.stop > at
        at = where.stop
        assert piece.user.tolist() == batch.user[where].tolist()
        assert piece.counts.tolist() == batch.counts[where].tolist()
        assert piece.indptr[0] == 0
        assert len(piece) <= max_users
        assert len(piece.item) <= max_entries or len(piece) == 1, "only one user alone may be larger"
        items += piece.item.tolist()
    assert at == len(batch)
    assert items == batch.item.tolist()


@given(seed=seeds, n_users=st.integers(0, 8), length=st.integers(0, 25))
@quick
def test_padded_holds_the_latest_and_age_counts_from_them(seed: int, n_users: int, length: int) -> None:
    batch = ragged(np.random.default_rng(seed), n_users, 30, 20)
    padded = batch.padded(length, -1)
    assert padded.shape == (n_users, length)
    for user in range(n_users):
        mine = slice(batch.indptr[user], batch.indptr[user + 1])
        history = batch.item[mine].tolist()
        assert batch.age[mine].tolist() == list(range(len(history)))[::-1]
        latest = history[-length:] if length else []
        assert padded[user].tolist() == latest + [-1] * (length - len(latest))


def test_catalogue_is_aligned_to_the_interactions() -> None:
    films = Catalog(
        np.array(["b", "a"]), np.array(["Be", ""]), (("x",), ()), features=np.eye(2, dtype=np.float32)
    )
    aligned = films.align(np.array(["a", "c", "b"]))
    assert [aligned.label(k) for k in range(3)] == ["a", "c", "Be"]
    assert aligned.categories == ((), (), ("x",))
    assert aligned.features is not None
    assert aligned.features.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert len(Catalog.bare(np.zeros(0, dtype=str)).align(np.array(["q"]))) == 1
    with pytest.raises(DataError, match="one id, title, category tuple"):
        Catalog(np.array(["a"]), np.array(["A", "B"]), ((),))


def test_empty_batches() -> None:
    no_one = UserBatch(
        np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    )
    assert list(no_one.chunks(10, 10)) == []
    assert len(no_one.take(np.zeros(0, dtype=np.int64))) == 0
    assert no_one.padded(4, 0).shape == (0, 4)
