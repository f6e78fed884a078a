"""Cleaning removes what it says, and its report adds up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Catalog, Dataset, Interactions
from fedrec.data.cleaning import Binarise, DropDuplicates, DropUnknownItems, KCore, RatingRange, clean
from fedrec.data.rows import RowReport


def dataset(rows: list[tuple[str, str, float, int]], catalog: Catalog | None = None) -> Dataset:
    user, item, value, stamp = zip(*rows, strict=True)
    data = Interactions.from_columns(user, item, value, stamp)
    return Dataset("d", data, (catalog or Catalog.bare(data.item_ids)).align(data.item_ids))


def triples(data: Interactions) -> list[tuple[str, str, float]]:
    columns = (data.user_ids[data.user], data.item_ids[data.item], data.value)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def test_the_latest_of_duplicates_wins() -> None:
    rows = [
        ("u", "a", 1.0, 5),
        ("u", "b", 2.0, 6),
        ("u", "a", 3.0, 9),
        ("u", "a", 4.0, 9),
        ("u", "a", 5.0, 2),
    ]
    cleaned, report = clean(dataset(rows), [DropDuplicates()])
    assert triples(cleaned.interactions) == [("u", "b", 2.0), ("u", "a", 4.0)]
    assert report.rows[0].removed == 3


def test_rating_range_and_binarise() -> None:
    rows = [("u", "a", -1.0, 1), ("u", "b", 3.0, 2), ("u", "c", 5.0, 3), ("u", "d", 6.0, 4)]
    cleaned, report = clean(dataset(rows), [RatingRange(0, 5), Binarise(4.0)])
    assert triples(cleaned.interactions) == [("u", "c", 1.0)]
    assert [row.removed for row in report.rows] == [2, 1]
    everything, _ = clean(dataset(rows), [Binarise()])
    assert everything.interactions.value.tolist() == [1, 1, 1, 1]


def test_unknown_items() -> None:
    catalog = Catalog(np.array(["a", "b"]), np.array(["Alien", ""]), ((), ("Drama",)))
    rows = [("u", "a", 1.0, 1), ("u", "b", 1.0, 2), ("v", "c", 1.0, 3)]
    cleaned, report = clean(dataset(rows, catalog), [DropUnknownItems()])
    assert cleaned.interactions.item_ids.tolist() == cleaned.catalog.item_ids.tolist() == ["a", "b"]
    assert cleaned.catalog.label(0) == "Alien" and report.rows[0].users_after == 1
    named, _ = clean(dataset(rows), [DropUnknownItems(frozenset("c"))])
    assert named.interactions.user_ids.tolist() == ["v"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_k_core_is_the_largest_set_in_which_everyone_has_enough(
    pairs: list[tuple[int, int]], users: int, items: int
) -> None:
    expected = list(pairs)
    while True:
        kept = [
            (u, i)
            for u, i in expected
            if sum(p[0] == u for p in expected) >= users and sum(p[1] == i for p in expected) >= items
        ]
        if kept == expected:
            break
        expected = kept
    data = dataset([(f"u{u}", f"i{i}", 1.0, k) for k, (u, i) in enumerate(pairs)])
    if not expected:
        with pytest.raises(DataError, match="removes all"):
            clean(data, [KCore(users, items)])
        return
    cleaned, report = clean(data, [KCore(users, items)])
    assert sorted(triples(cleaned.interactions)) == sorted((f"u{u}", f"i{i}", 1.0) for u, i in expected)
    assert cleaned.interactions.counts.min() >= users and cleaned.interactions.item_counts.min() >= items
    assert report.rows[0].removed == len(pairs) - len(expected)


def test_report_is_printable_and_a_dictionary() -> None:
    read = RowReport("f.csv", rows=3)
    read.add(2, "malformed", "bad")
    _, report = clean(dataset([("u", "a", 1.0, 1), ("v", "a", 2.0, 1)]), [RatingRange(2, 3)], read)
    assert str(report).splitlines()[0].startswith("reading: f.csv: 1 of 3 rows left out (line 2: bad)")
    assert "removed 1 interactions (2 -> 1; users 2 -> 1, items 1 -> 1)" in str(report)
    step = report.as_dict()["steps"][0]
    assert step["removed"] == 1 and step["step"] == "rating outside 2..3"
    assert report.as_dict()["read"]["malformed"] == 1


def test_impossible_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower end"):
        RatingRange(5, 1)
    with pytest.raises(ConfigError, match="at least 1"):
        KCore(0, 1)
