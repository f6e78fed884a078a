"""Lists: exact, deterministic, and never an excluded item."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from evaluation_helpers import batch, random_case
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import DataError
from fedrec.ranking.top_n import rank_all, top_n


def naive(row: np.ndarray, excluded: set[int], n: int) -> list[int]:
    items = [i for i in range(len(row)) if i not in excluded and row[i] > -np.inf]
    items.sort(key=lambda i: (-row[i], i))
    return (items + [-1] * n)[:n]


@given(
    seed=st.integers(0, 2**32 - 1),
    n_items=st.integers(1, 30),
    n=st.integers(1, 35),
    levels=st.one_of(st.none(), st.integers(1, 5)),
    holes=st.floats(0, 1),
)
def test_lists_equal_the_naive_reference(
    seed: int, n_items: int, n: int, levels: int | None, holes: float
) -> None:
    scores, history, _ = random_case(seed, 5, n_items, levels=levels)
    rng = np.random.default_rng(seed)
    scores[rng.random(scores.shape) < holes * 0.3] = -np.inf
    scores[rng.random(scores.shape) < holes * 0.3] = np.nan
    items, values = top_n(scores, n, history)
    for u in range(5):
        excluded = set(history.take(np.array([u])).item.tolist())
        assert items[u].tolist() == naive(scores[u], excluded, n)
        some = items[u] >= 0
        assert np.array_equal(values[u][some], scores[u][items[u][some]])
        assert np.all(values[u][~some] == -np.inf)


def test_equal_scores_go_by_item_index() -> None:
    items, _ = top_n(np.array([[1.0, 2, 2, 2, 1, 2]]), 3)
    assert items.tolist() == [[1, 2, 3]]


def test_scores_are_left_as_they_were() -> None:
    scores = np.array([[3.0, 2, 1]])
    top_n(scores, 1, batch([[0]]))
    assert scores.tolist() == [[3, 2, 1]]


def test_rank_all_orders_everything_that_is_left() -> None:
    items, values = rank_all(np.array([[1.0, 3, 2, 4]], dtype=np.float32), batch([[3]]))
    assert items.tolist() == [[1, 2, 0, -1]]
    assert values.dtype == np.float32
    assert values.tolist() == [[3, 2, 1, -np.inf]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: top_n(np.zeros((1, 3)), 0), "n=0: expected at least 1"),
        (lambda: top_n(np.zeros(3), 1), "two axes"),
        (lambda: top_n(np.zeros((1, 3)), 1, batch([[0], [1]])), "2 histories for 1 rows"),
        (lambda: top_n(np.zeros((1, 3)), 1, batch([[3]])), "outside the 3 scored"),
    ],
)
def test_wrong_input_is_one_clear_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()
