"""The contract of a metric at k; subclass `MetricContract` and give `metric`.

Letters: U users, k cut-off.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from fedrec.evaluation.metrics import METRICS, Floats, Metric
from fedrec.evaluation.ranks import Ranks

USERS = 200


def random_ranks(seed: int, users: int = USERS, opponents: int = 40) -> Ranks:
    """Ranks of 0 to 6 held-out items of each user among `opponents` others."""
    rng = np.random.default_rng(seed)
    held = rng.integers(0, 7, users)
    rank = [np.sort(rng.choice(opponents + n, n, replace=False)) + 1 for n in held]
    indptr = np.concatenate([[0], np.cumsum(held)])
    return Ranks(
        indptr.astype(np.int64),
        np.concatenate(rank).astype(np.int64),
        np.full(users, opponents, dtype=np.int64),
    )


def rows(ranks: Ranks, users: np.ndarray) -> Ranks:
    """The ranks of some users."""
    parts = [ranks.rank[ranks.indptr[u] : ranks.indptr[u + 1]] for u in users]
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Ranks(indptr, np.concatenate(parts), ranks.candidates[users])


class MetricContract:
    """What evaluation, secret sums and private releases rely on."""

    #: Name or import path.
    metric: ClassVar[str]

    @pytest.fixture
    def compute(self) -> Metric:
        """The function of the metric."""
        return METRICS.get(self.metric, paths=True)

    @pytest.mark.parametrize("k", [1, 3, 10, 100])
    def test_is_within_0_and_1_and_nan_without_a_held_out_item(self, compute: Metric, k: int) -> None:
        """Private sums are bounded by 1, and users of whom nothing is held out are not averaged over."""
        ranks = random_ranks(k)
        values = self.values(compute, ranks, k)
        assert values.shape == (USERS,) and values.dtype == np.float64
        np.testing.assert_array_equal(np.isnan(values), ranks.held == 0)
        assert np.all((values[ranks.held > 0] >= 0) & (values[ranks.held > 0] <= 1 + 1e-12))

    def test_a_user_does_not_depend_on_the_others(self, compute: Metric) -> None:
        """A node with one user says what a node with many says of that user."""
        ranks = random_ranks(1)
        together = self.values(compute, ranks, 10)
        order = np.random.default_rng(2).permutation(USERS)
        np.testing.assert_array_equal(self.values(compute, rows(ranks, order), 10), together[order])
        for user in (0, 7, USERS - 1):
            alone = self.values(compute, rows(ranks, np.array([user])), 10)
            np.testing.assert_array_equal(alone, together[user : user + 1])

    def test_the_best_ranks_are_worth_most(self, compute: Metric) -> None:
        """Held-out items in front of all others give the highest value of each user, and more than random ones."""
        ranks = random_ranks(3)
        first = np.arange(len(ranks.rank)) - ranks.indptr[ranks.row] + 1
        best = self.values(compute, Ranks(ranks.indptr, first, ranks.candidates), 10)
        found, some = self.values(compute, ranks, 10), ranks.held > 0
        assert np.all(best[some] >= found[some] - 1e-12)
        assert best[some].mean() > found[some].mean()

    def test_ranks_are_not_changed(self, compute: Metric) -> None:
        """Several metrics read the same ranks."""
        ranks = random_ranks(4)
        before = ranks.rank.copy()
        self.values(compute, ranks, 5)
        np.testing.assert_array_equal(ranks.rank, before)

    @staticmethod
    def values(compute: Metric, ranks: Ranks, k: int) -> Floats:
        """[U] of some ranks."""
        return np.asarray(compute(ranks, k))
