"""Splits hold out what their rule says, nothing twice, and survive being written and read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import planted
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, DataError, EnvironmentProblem
from fedrec.core.interactions import Interactions
from fedrec.data.split import Split
from fedrec.data.splits import (
    describe,
    from_split_column,
    held_out_users,
    leave_one_out,
    load_shard,
    per_user_ratio,
    prepared,
    read_split,
    save_shard,
    temporal,
    write_split,
)

PARTS = ("train", "validation", "test", "support")


def rows(part: Interactions | None) -> list[tuple[str, str, float, int]]:
    if part is None:
        return []
    columns = (part.user_ids[part.user], part.item_ids[part.item], part.value, part.timestamp)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def same(a: Split, b: Split) -> None:
    assert np.array_equal(a.user_key, b.user_key)
    for name in PARTS:
        one, two = getattr(a, name), getattr(b, name)
        assert (one is None) == (two is None)
        if one is not None:
            assert (
                one.user_ids.tolist() == two.user_ids.tolist()
                and one.item_ids.tolist() == two.item_ids.tolist()
            )
            for column in ("user", "item", "value", "timestamp"):
                assert np.array_equal(getattr(one, column), getattr(two, column))
                assert getattr(one, column).dtype == getattr(two, column).dtype


@st.composite
def data_sets(draw: st.DrawFn) -> Interactions:
    n = draw(st.integers(2, 40))
    user = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    item = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    value = draw(st.lists(st.floats(-5, 5, width=32), min_size=n, max_size=n))
    stamp = draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))
    return Interactions.from_columns([f"u{u}" for u in user], item, value, stamp)


def any_split(data: Interactions, which: int) -> Split | None:
    try:
        return [
            lambda: leave_one_out(data),
            lambda: leave_one_out(data, ties="smallest_item"),
            lambda: temporal(data, 0.2, 0.2),
            lambda: per_user_ratio(data, 0.3, 0.2),
            lambda: per_user_ratio(data, 0.3, 0.2, order="random", seed=3),
            lambda: held_out_users(data, 0.3, 0.3),
        ][which]()
    except DataError:
        return None


@settings(max_examples=150, deadline=None)
@given(data_sets(), st.integers(0, 5))
def test_every_interaction_is_in_exactly_one_part(data: Interactions, which: int) -> None:
    split = any_split(data, which)
    if split is None:
        return
    assert sorted(r for name in PARTS for r in rows(getattr(split, name))) == sorted(rows(data))
    assert len(split.train) and split.test is not None and len(split.test)
    if which != 2:
        known = split.train.counts + (split.support.counts if split.support is not None else 0)
        assert np.all(known[data.counts > 0] >= 1), "a user keeps something to be known by"


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.integers(0, 5), st.sampled_from(["csv", "parquet", "npz"]))
def test_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, data: Interactions, which: int, kind: str
) -> None:
    split = any_split(data, which)
    if split is None:
        return
    if split.train.n_users > 1:
        split = split.shard(1, 2)
    folder = tmp_path_factory.mktemp("split")
    if kind == "npz":
        save_shard(split, folder / "a" / "shard.npz")
        same(load_shard(folder / "a" / "shard.npz"), split)
    else:
        write_split(split, folder, "a rule", "csv" if kind == "csv" else "parquet")
        same(read_split(folder), split)


def chain(stamps: list[int], items: list[int]) -> Interactions:
    return Interactions.from_columns(["u"] * len(items), items, timestamp=stamps)


@pytest.mark.parametrize(
    ("ties", "test", "validation"),
    [("file_order", 7, 9), ("smallest_item", 5, 7), ("largest_item", 9, 7)],
)
def test_ties_of_leave_one_out(ties: str, test: int, validation: int) -> None:
    data = chain([1, 2, 3, 3, 3], [2, 4, 5, 9, 7])
    split = leave_one_out(data, ties=ties)  # type: ignore[arg-type]
    assert split.test is not None and split.validation is not None
    assert [split.test.item_ids[k] for k in split.test.item] == [str(test)]
    assert [split.validation.item_ids[k] for k in split.validation.item] == [str(validation)]


def test_random_leave_one_out_draws_by_user_and_item_alone() -> None:
    users, items = np.repeat(np.arange(300), 6).tolist(), np.tile(np.arange(6), 300).tolist()
    drawn = leave_one_out(Interactions.from_columns(users, items), targets="random", seed=3)
    assert drawn.test is not None and drawn.validation is not None
    assert drawn.test.counts.tolist() == drawn.validation.counts.tolist() == [1] * 300
    assert drawn.train.counts.tolist() == [4] * 300
    # Uniform over the six places: 50 each, standard deviation 6.5.
    assert np.abs(np.bincount(drawn.test.item, minlength=6) - 50).max() < 26
    backwards = leave_one_out(Interactions.from_columns(users[::-1], items[::-1]), targets="random", seed=3)
    assert sorted(rows(drawn.test)) != sorted(
        rows(leave_one_out(Interactions.from_columns(users, items), targets="random", seed=4).test)
    )
    assert backwards.test is not None
    picked = [{(r[0], r[1]) for r in rows(split.test)} for split in (drawn, backwards)]
    assert picked[0] == picked[1]


def test_users_with_few_interactions_stay_in_train() -> None:
    data = Interactions.from_columns(list("abbccc"), list("xxyxyz"))
    split = leave_one_out(data)
    assert split.train.counts.tolist() == [1, 1, 1]
    assert split.test is not None and split.test.counts.tolist() == [0, 1, 1]
    facts = describe(split)
    assert facts["users_with_one_interaction"] == 1 and facts["users_without_validation"] == 2
    assert facts["test"] == {"users": 2, "interactions": 2}
    assert leave_one_out(data, validation=False).validation is None
    with pytest.raises(DataError, match="no user has two interactions"):
        leave_one_out(Interactions.from_columns(["a", "b"], ["x", "y"]))


def test_temporal_keeps_a_second_together() -> None:
    data = Interactions.from_columns(list("aabbab"), list("xyxyzz"), timestamp=[1, 2, 3, 4, 9, 9])
    split = temporal(data, 0.1, 0.2)
    assert sorted(r[3] for r in rows(split.test)) == [9, 9]
    assert sorted(r[3] for r in rows(split.validation)) == [4]
    split = temporal(data, test_from=4, validation_from=2)
    assert [len(rows(p)) for p in (split.train, split.validation, split.test)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="not before the test part"):
        temporal(data, test_from=3, validation_from=3)
    with pytest.raises(DataError, match="nothing to learn from"):
        temporal(data, test_from=0)
    with pytest.raises(DataError, match="no interaction is as late as 99"):
        temporal(data, test_from=99)
    with pytest.raises(ConfigError, match="shares between 0 and 1"):
        temporal(data, 0.6, 0.5)


def test_per_user_ratio_takes_the_latest_or_random_ones() -> None:
    data = Interactions.from_columns(["a"] * 10 + ["b"], range(11))
    split = per_user_ratio(data, 0.2, 0.1)
    assert [r[1] for r in rows(split.test)] == ["8", "9"] and [r[1] for r in rows(split.validation)] == ["7"]
    draws = {
        tuple(r[1] for r in rows(per_user_ratio(data, 0.2, order="random", seed=s).test)) for s in range(8)
    }
    assert len(draws) > 4 and all(len(d) == 2 for d in draws)
    same(per_user_ratio(data, order="random", seed=1), per_user_ratio(data, order="random", seed=1))


def test_held_out_users_are_never_trained_on() -> None:
    user = np.repeat(np.arange(40), 5)
    data = Interactions.from_columns(user, np.tile(np.arange(5), 40))
    split = held_out_users(data, 0.2, 0.1, seed=4)
    assert split.test is not None and split.validation is not None and split.support is not None
    test, validation = (np.flatnonzero(p.counts) for p in (split.test, split.validation))
    assert len(test) == 8 and len(validation) == 4 and not set(test) & set(validation)
    assert np.all(split.train.counts[np.concatenate([test, validation])] == 0)
    assert np.all(split.support.counts[test] == 4) and set(split.test.item.tolist()) == {4}
    other = held_out_users(data, 0.2, 0.1, seed=5)
    assert other.test is not None and not np.array_equal(split.test.user, other.test.user)


def test_prepared_files(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("user,item\n10,b\n9,a\n10,a\n")
    (tmp_path / "val.csv").write_text("item,user\nc,10\n")
    (tmp_path / "test.csv").write_text("user,item\n9,b\n11,a\n")
    (tmp_path / "items.csv").write_text("item,title\nz,Zorro\n")
    files = [tmp_path / f"{n}.csv" for n in ("train", "val", "test", "items")]
    split = prepared(*files)
    assert split.train.user_ids.tolist() == ["9", "10", "11"] and split.train.item_ids.tolist() == [
        "a",
        "b",
        "c",
        "z",
    ]
    assert [r[:2] for r in rows(split.train)] == [("9", "a"), ("10", "b"), ("10", "a")]
    assert rows(split.validation)[0][3] > max(r[3] for r in rows(split.train))
    assert [r[:2] for r in rows(split.test)] == [("9", "b"), ("11", "a")]
    assert prepared(files[0]).test is None


def test_prepared_parquet_with_ratings_and_times(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"user": [1, 1], "item": ["b", "a"], "rating": [3.0, 4.0], "timestamp": [20, 10]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert rows(prepared(tmp_path / "t.parquet").train) == [("1", "a", 4.0, 10), ("1", "b", 3.0, 20)]


def test_prepared_files_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("user,item\n1,a\n,b\n")
    with pytest.raises(DataError, match=r"line 3.*must be whole"):
        prepared(path)
    path.write_text("users,item\n1,a\n")
    with pytest.raises(DataError, match="did you mean 'users'"):
        prepared(path)
    with pytest.raises(DataError, match="does not exist"):
        prepared(tmp_path / "none.csv")


def test_split_column(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("user_id,item_id,split,order\n1,5,train,0\n1,7,test,2\n1,6,val,1\n")
    split = from_split_column(path)
    assert [[r[1] for r in rows(getattr(split, n))] for n in PARTS[:3]] == [["5"], ["6"], ["7"]]
    path.write_text("user_id,item_id,split,order\n1,5,train,0\n1,7,later,2\n")
    with pytest.raises(DataError, match="'later'; expected train, val or test"):
        from_split_column(path)
    path.write_text("user_id,item_id,split,order\n1,7,test,2\n")
    with pytest.raises(DataError, match="no row as train"):
        from_split_column(path)


def test_written_split_says_its_rule_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = leave_one_out(Interactions.from_columns(list("aabbb"), list("xyxyz")))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_split(split, tmp_path / "s", "leave one out")
    facts = json.loads((tmp_path / "s" / "split.json").read_text())
    assert facts["rule"] == "leave one out" and facts["interactions"] == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }
    assert (tmp_path / "s" / "test.csv").read_text() == "user,item,rating,timestamp\na,y,1.0,1\nb,z,1.0,4\n"
    same(read_split(tmp_path / "s"), split)
    with pytest.raises(EnvironmentProblem, match="pyarrow"):
        write_split(split, tmp_path / "s", format="parquet")


def test_damaged_splits_and_shards_are_refused(tmp_path: Path) -> None:
    split = leave_one_out(Interactions.from_columns(list("aabbb"), list("xyxyz")))
    with pytest.raises(DataError, match="no finished split"):
        read_split(tmp_path)
    write_split(split, tmp_path / "s", format="csv")
    test = tmp_path / "s" / "test.csv"
    test.write_text("".join(test.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"1 rows where split.json says 2"):
        read_split(tmp_path / "s")
    save_shard(split, tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-200])
    with pytest.raises(DataError, match="no whole shard"):
        load_shard(tmp_path / "a.npz")
    with pytest.raises(DataError, match="no whole shard"):
        load_shard(tmp_path / "none.npz")


def test_ids_that_no_table_keeps_are_refused(tmp_path: Path) -> None:
    split = leave_one_out(Interactions.from_columns(["a ", "a "], ["x", "y"]))
    with pytest.raises(DataError, match="spaces around it"):
        write_split(split, tmp_path)


def test_random_targets_of_held_out_users_are_no_newer_than_the_rest() -> None:
    data = planted(60, 40)
    latest = held_out_users(data, 0.3, 0.1, seed=4)
    drawn = held_out_users(data, 0.3, 0.1, targets="random", seed=4)
    assert latest.test is not None and drawn.test is not None and drawn.support is not None
    np.testing.assert_array_equal(latest.test.counts, drawn.test.counts)
    np.testing.assert_array_equal(latest.train.item, drawn.train.item)
    assert not np.array_equal(latest.test.item, drawn.test.item)
    newer = np.mean([t > s for t in drawn.test.timestamp for s in drawn.support.timestamp])
    assert 0.3 < newer < 0.7
