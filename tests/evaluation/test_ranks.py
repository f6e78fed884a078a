"""Ranks: against a naive reference, and every tie against us."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_helpers import batch, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import DataError
from fedrec.core.interactions import UserBatch
from fedrec.evaluation._candidates import draw_candidates, not_candidates
from fedrec.evaluation.ranks import Ranks, check_batches, full_ranks, lowest_where_missing, sampled_ranks

seeds = st.integers(0, 2**32 - 1)
levels = st.one_of(st.none(), st.integers(1, 6))


def ranked(scores: np.ndarray, history: UserBatch, target: UserBatch) -> Ranks:
    return full_ranks(scores, not_candidates(history, target, scores.shape[1]), target)


def naive(scores: np.ndarray, history: UserBatch, target: UserBatch) -> list[list[int]]:
    """Sorted ranks per user: a list with candidates before held-out items of the same score."""
    out = []
    for u in range(len(scores)):
        seen = set(history.item[history.indptr[u] : history.indptr[u + 1]].tolist())
        held = set(target.item[target.indptr[u] : target.indptr[u + 1]].tolist())
        items = [i for i in range(scores.shape[1]) if i in held or i not in seen]
        items.sort(key=lambda i: (-scores[u, i], i in held))
        out.append([place for place, i in enumerate(items, start=1) if i in held])
    return out


def per_user(ranks: Ranks) -> list[list[int]]:
    return [sorted(part.tolist()) for part in np.split(ranks.rank, ranks.indptr[1:-1])]


@given(seed=seeds, n_levels=levels)
def test_full_ranks_equal_the_naive_reference(seed: int, n_levels: int | None) -> None:
    scores, history, target = random_case(seed, 7, 25, levels=n_levels)
    ranks = ranked(scores, history, target)
    assert per_user(ranks) == naive(scores, history, target)
    assert np.array_equal(ranks.candidates, 25 - history.counts - target.counts)


def test_a_hand_computed_example() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    ranks = ranked(scores, batch([[0, 3]]), batch([[4, 1]]))
    # Unseen: 1 (held out), 2, 4 (held out), 5, in this order.
    assert ranks.rank.tolist() == [3, 1]
    assert ranks.candidates.tolist() == [2]


def test_a_held_out_item_counts_even_if_it_was_seen_before() -> None:
    ranks = ranked(np.array([[3.0, 2.0, 1.0]]), batch([[0, 1]]), batch([[1]]))
    assert ranks.rank.tolist() == [1]
    assert ranks.candidates.tolist() == [1]


@pytest.mark.parametrize("value", [0.0, 7.5, -np.inf, np.nan])
def test_all_tied_scores_give_the_worst_ranks(value: float) -> None:
    scores, _ = lowest_where_missing(np.full((2, 10), value, dtype=np.float32))
    ranks = ranked(scores, batch([[0, 1], []]), batch([[5], [2, 3]]))
    assert per_user(ranks) == [[8], [9, 10]]


def test_a_missing_score_is_the_lowest_and_its_user_is_reported() -> None:
    scores = np.array([[1.0, np.nan, -5.0], [1.0, 2.0, 3.0]], dtype=np.float32)
    filled, users = lowest_where_missing(scores)
    assert users.tolist() == [True, False]
    ranks = ranked(filled, batch([[], []]), batch([[1], [1]]))
    assert ranks.rank.tolist() == [3, 2]
    assert ranked(filled, batch([[], []]), batch([[2], [2]])).rank.tolist() == [2, 1]


@given(seed=seeds)
def test_more_ties_never_help(seed: int) -> None:
    scores, history, target = random_case(seed, 6, 20)
    coarse = np.floor(scores * 4) / 4
    finer = np.sort(ranked(scores, history, target).rank)
    assert np.all(np.sort(ranked(coarse, history, target).rank) >= finer)


@given(seed=seeds, n_levels=levels)
def test_increasing_transforms_change_nothing(seed: int, n_levels: int | None) -> None:
    scores, history, target = random_case(seed, 6, 20, levels=n_levels)
    want = ranked(scores, history, target)
    for changed in (3 * scores.astype(np.float64) - 7, np.exp(scores.astype(np.float64))):
        assert np.array_equal(ranked(changed, history, target).rank, want.rank)


@given(seed=seeds, n_levels=levels)
def test_renumbering_items_and_reordering_users_changes_nothing(seed: int, n_levels: int | None) -> None:
    scores, history, target = random_case(seed, 6, 20, levels=n_levels)
    rng = np.random.default_rng(seed)
    new, users = rng.permutation(20), rng.permutation(6)
    moved = np.empty_like(scores)
    moved[:, new] = scores
    parts = [UserBatch(b.user, b.indptr, new[b.item], b.value).take(users) for b in (history, target)]
    want = per_user(ranked(scores, history, target))
    assert per_user(ranked(moved[users], *parts)) == [want[u] for u in users]


# Sampled candidates ----------------------------------------------------------------------------------------


def candidates(history: UserBatch, target: UserBatch, n_items: int, n: int, seed: int = 3) -> np.ndarray:
    return draw_candidates(history.user, not_candidates(history, target, n_items), n, seed)


@given(seed=seeds, n_items=st.integers(20, 400), n=st.integers(1, 120))
@settings(max_examples=60)
def test_candidates_are_different_unseen_and_not_held_out(seed: int, n_items: int, n: int) -> None:
    _, history, target = random_case(seed, 5, n_items)
    drawn = candidates(history, target, n_items, n, seed)
    for u in range(5):
        own = drawn[u][drawn[u] >= 0]
        known = np.concatenate([history.take(np.array([u])).item, target.take(np.array([u])).item])
        assert len(own) == min(n, n_items - len(known))
        assert len(set(own.tolist())) == len(own)
        assert not set(own.tolist()) & set(known.tolist())
        assert np.all(drawn[u][len(own) :] == -1)


@given(seed=seeds, n=st.sampled_from([5, 30, 99]))
def test_candidates_do_not_depend_on_the_batch(seed: int, n: int) -> None:
    _, history, target = random_case(seed, 8, 120)
    together = candidates(history, target, 120, n, seed)
    rows = np.random.default_rng(seed).permutation(8)[:3]
    apart = candidates(history.take(rows), target.take(rows), 120, n, seed)
    assert np.array_equal(apart, together[rows])


def test_candidates_change_with_seed_and_user() -> None:
    history, target = batch([[0], [0]]), batch([[1], [1]])
    first, second = candidates(history, target, 1000, 99)
    assert not np.array_equal(np.sort(first), np.sort(second))
    assert not np.array_equal(first, candidates(history, target, 1000, 99, seed=4)[0])


@pytest.mark.parametrize(("n_items", "n"), [(40, 9), (40, 30)], ids=["first draws", "exact draws"])
def test_candidates_are_uniform(n_items: int, n: int) -> None:
    n_users = 4000
    history, target = batch([[0, 5]] * n_users), batch([[7]] * n_users)
    counts = np.bincount(candidates(history, target, n_items, n).ravel(), minlength=n_items)
    allowed = np.delete(counts, [0, 5, 7])
    share = n / (n_items - 3)
    assert counts[[0, 5, 7]].tolist() == [0, 0, 0]
    # Five standard deviations of a binomial count.
    assert np.all(np.abs(allowed - n_users * share) < 5 * np.sqrt(n_users * share * (1 - share)))


@given(seed=seeds, n_levels=levels)
def test_sampled_ranks_with_all_candidates_are_full_ranks(seed: int, n_levels: int | None) -> None:
    scores, history, target = random_case(seed, 6, 25, levels=n_levels)
    drawn = candidates(history, target, 25, 99)
    full, sampled = ranked(scores, history, target), sampled_ranks(scores, drawn, target)
    assert np.array_equal(full.rank, sampled.rank)
    assert np.array_equal(full.candidates, sampled.candidates)


def test_sampled_ranks_by_hand() -> None:
    scores = np.array([[9.0, 8, 7, 6, 5, 5]])
    ranks = sampled_ranks(scores, np.array([[0, 5, -1]]), batch([[2, 4]]))
    # 0 (9.0), held-out 2 (7.0), 5 (5.0, a tie), held-out 4 (5.0).
    assert ranks.rank.tolist() == [2, 4]
    assert ranks.candidates.tolist() == [2]


# Wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "history", "target", "words"),
    [
        (np.zeros((1, 5)), batch([[0], [1]]), batch([[1], [2]]), "one row for each of 2 users"),
        (np.zeros((2, 5)), batch([[0], [1]]), batch([[1], [2]], [1, 0]), "different users"),
        (np.zeros((1, 5)), batch([[7]]), batch([[1]]), "outside the 5 scored"),
        (np.zeros((1, 5)), batch([[0]]), batch([[5]]), "outside the 5 scored"),
        (np.zeros((1, 5)), batch([[0]], [8]), batch([[3, 3]], [8]), "item 3 is held out twice from user 8"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    scores: np.ndarray, history: UserBatch, target: UserBatch, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        check_batches(scores, history, target)
