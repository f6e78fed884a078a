"""Metrics: by hand, against ranx, and their bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from evaluation_helpers import batch, random_case
from hypothesis import given
from hypothesis import strategies as st

from fedrec.evaluation import metrics
from fedrec.evaluation._candidates import not_candidates
from fedrec.evaluation.ranks import Ranks, full_ranks
from fedrec.testing import MetricContract


def ranks(per_user: list[list[int]], candidates: int = 100) -> Ranks:
    shape = batch(per_user)
    return Ranks(shape.indptr, shape.item, np.full(len(per_user), candidates))


class TestEveryMetric(MetricContract):
    """The contract that is shipped for those of others, for each of fedrec's own."""

    @pytest.fixture(params=metrics.METRICS.builtin_names())
    def compute(self, request: pytest.FixtureRequest) -> metrics.Metric:
        return metrics.METRICS.get(request.param)


def test_one_held_out_item_by_hand() -> None:
    r = ranks([[1], [3], [11]])
    third = 1 / np.log2(4)
    assert metrics.hit_rate(r, 10).tolist() == [1, 1, 0]
    assert metrics.recall(r, 10).tolist() == [1, 1, 0]
    assert metrics.precision(r, 10).tolist() == [0.1, 0.1, 0]
    assert metrics.ndcg(r, 10).tolist() == [1, third, 0]
    assert metrics.reciprocal_rank(r, 10).tolist() == [1, 1 / 3, 0]
    assert metrics.average_precision(r, 10).tolist() == [1, 1 / 3, 0]
    assert metrics.f1(r, 10) == pytest.approx([2 / 11, 2 / 11, 0])
    assert metrics.auc(r) == pytest.approx([1, 0.98, 0.90])


def test_several_held_out_items_by_hand() -> None:
    r = ranks([[4, 1, 9]], candidates=7)
    assert metrics.recall(r, 5) == metrics.capped_recall(r, 5) == pytest.approx([2 / 3])
    assert metrics.precision(r, 5) == pytest.approx([2 / 5])
    assert metrics.average_precision(r, 5) == pytest.approx([(1 + 2 / 4) / 3])
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert metrics.ndcg(r, 5) == pytest.approx([(1 + 1 / np.log2(5)) / ideal])
    # Candidates before the three: 0, 2 and 6, of 7 each.
    assert metrics.auc(r) == pytest.approx([1 - 8 / 21])


def test_more_held_out_items_than_places() -> None:
    r = ranks([[1, 2, 3, 4]])
    assert metrics.ndcg(r, 2) == pytest.approx([1])
    assert metrics.recall(r, 2) == pytest.approx([0.5])
    assert metrics.capped_recall(r, 2) == pytest.approx([1])
    assert metrics.capped_recall(ranks([[2, 9, 11]]), 2) == pytest.approx([0.5])
    assert metrics.average_precision(r, 2) == pytest.approx([0.5])


def test_users_without_held_out_items_cannot_be_averaged_by_accident() -> None:
    values = metrics.all_metrics(ranks([[], [2], []]), [5])
    assert set(values) == set(metrics.metric_names([5]))
    assert all(np.isnan(v).tolist() == [True, False, True] for v in values.values())


def test_auc_without_candidates_is_a_coin() -> None:
    assert metrics.auc(ranks([[1, 2]], candidates=0)).tolist() == [0.5]


@given(
    st.lists(st.sets(st.integers(1, 60), min_size=1, max_size=8), min_size=1, max_size=8), st.integers(1, 30)
)
def test_metrics_stay_within_bounds_and_grow_with_better_ranks(users: list[set[int]], k: int) -> None:
    now = metrics.all_metrics(ranks([sorted(u) for u in users]), [k])
    for values in now.values():
        assert np.all((values >= 0) & (values <= 1 + 1e-12))
    best = metrics.all_metrics(ranks([list(range(1, len(u) + 1)) for u in users]), [k])
    for name, values in now.items():
        assert np.all(best[name] >= values - 1e-12)
    assert best[f"ndcg@{k}"] == pytest.approx(1)
    assert best["auc"] == pytest.approx(1)


RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
case = json.load(sys.stdin)
run = Run(case["listed"])
evaluate(Qrels(case["relevant"]), run, case["metrics"], make_comparable=True)
json.dump({metric: dict(run.scores[metric]) for metric in case["metrics"]}, sys.stdout, default=float)
"""


def ranx(relevant: dict[str, dict[str, int]], listed: dict[str, dict[str, float]], names: list[str]) -> Any:
    """Per-user metrics of ranx; in a process of its own, where it need not compile for half a minute."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANX],
        input=json.dumps({"relevant": relevant, "listed": listed, "metrics": names}),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_metrics_equal_ranx() -> None:
    scores, history, target = random_case(11, 60, 80, max_held=12)
    evaluated = np.flatnonzero(target.counts)
    scores, history, target = scores[evaluated], history.take(evaluated), target.take(evaluated)
    forbidden = not_candidates(history, target, 80)
    relevant, listed = {}, {}
    for u in range(len(evaluated)):
        held = target.take(np.array([u])).item.tolist()
        open_items = np.union1d(np.flatnonzero(~forbidden[u]), held)
        relevant[f"u{u:03d}"] = {f"i{i}": 1 for i in held}
        listed[f"u{u:03d}"] = {f"i{i}": float(scores[u, i]) for i in open_items}
    ours = {"hr": "hit_rate", "mrr": "mrr"} | {n: n for n in ("recall", "precision", "f1", "ndcg", "map")}
    names = {f"{mine}@{k}": f"{theirs}@{k}" for mine, theirs in ours.items() for k in (5, 10)}
    want = ranx(relevant, listed, list(names.values()))
    got = metrics.all_metrics(full_ranks(scores, forbidden, target), (5, 10))
    for mine, theirs in names.items():
        assert got[mine] == pytest.approx([want[theirs][f"u{u:03d}"] for u in range(len(evaluated))]), mine


# Lists -----------------------------------------------------------------------------------------------------


def test_coverage_and_gini() -> None:
    assert metrics.coverage(np.array([3.0, 0, 1, 0])) == 0.5
    assert metrics.gini(np.array([5.0, 5, 5, 5])) == pytest.approx(0)
    assert metrics.gini(np.array([0.0, 0, 0, 8])) == pytest.approx(0.75)
    assert metrics.gini(np.array([1.0, 3])) == pytest.approx(0.25)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_gini_equals_mean_absolute_difference(counts: list[int]) -> None:
    x = np.array(counts, dtype=np.float64)
    want = np.abs(x[:, None] - x).sum() / (2 * len(x) * x.sum())
    assert metrics.gini(x) == pytest.approx(want, abs=1e-12)


def test_novelty_in_bits() -> None:
    owners = np.array([8.0, 4, 1, 0])
    assert metrics.novelty(np.array([2.0, 0, 0, 0]), owners, 8) == 0
    assert metrics.novelty(np.array([1.0, 1, 0, 0]), owners, 8) == pytest.approx(0.5)
    # No one has item 3: it counts like item 2, which one user has.
    assert metrics.novelty(np.array([0.0, 0, 1, 1]), owners, 8) == pytest.approx(3)


def test_diversity_is_the_mean_over_pairs_with_known_categories() -> None:
    categories = np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    lists = np.array([[0, 1, -1], [0, 0, 3], [0, 1, 2], [0, 3, -1]])
    half = 1 / np.sqrt(2)
    got = metrics.diversity(lists, categories)
    assert got[:3] == pytest.approx([1, 0, 1 - (0 + half + half) / 3])
    assert np.isnan(got[3])
