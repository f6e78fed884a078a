"""From sums to what is read: means, intervals, list metrics.

Nothing here is known of a single user. Out of scope: plots and tables (the reports of a run).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.evaluation._bootstrap import interval
from fedrec.evaluation.metrics import coverage, gini, novelty
from fedrec.evaluation.sums import MetricSums

BALANCED = ("full/ndcg@10", "sampled/ndcg@10", "sampled/hr@10")
#: Groups by history length, the shortest first, behind "all".
GROUPS = ("few", "middle", "many")


@dataclass(frozen=True)
class Estimate:
    """A mean over users with its 95 percent bootstrap interval (None where none was computed)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """How good a model is.

    Attributes:
        n_users: evaluated users of each group: "all", "few", "middle", "many".
        group_bounds: history lengths at which "middle" and "many" begin.
        metrics: group, then metric (as `full/ndcg@10`), to its estimate; a group without users has no
            metrics.
        lists: metrics of the recommended lists over all users together (as `coverage@10`).
        answers: of a ranker's probabilities over all held-out events (as `log_loss`), where they are evaluated; see
            `fedrec.evaluation._ranking_metrics.RankerSums.report`.
        unscored_users: users for whom the model gave a score that is not a number; above 0 the model is
            broken.
    """

    n_users: Mapping[str, int]
    group_bounds: tuple[int, int]
    metrics: Mapping[str, Mapping[str, Estimate]]
    lists: Mapping[str, float]
    unscored_users: int
    answers: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Plain means over all users by name, list metrics as `lists/coverage@10`, a ranker's as `answers/auc`.

        "balanced" is the geometric mean of full NDCG@10, sampled NDCG@10 and sampled HR@10 where all three were
        measured: the protocols prefer different models, and this one number respects both.
        """
        means = {name: estimate.value for name, estimate in self.metrics["all"].items()}
        if all(name in means for name in BALANCED):
            means["balanced"] = prod(means[name] for name in BALANCED) ** (1 / len(BALANCED))
        means |= {f"answers/{name}": value for name, value in self.answers.items()}
        return means | {f"lists/{name}": value for name, value in self.lists.items()}

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types that JSON knows."""
        return {
            "n_users": dict(self.n_users),
            "group_bounds": list(self.group_bounds),
            "metrics": {g: {name: vars(e).copy() for name, e in m.items()} for g, m in self.metrics.items()},
            "lists": dict(self.lists),
            "answers": dict(self.answers),
            "unscored_users": self.unscored_users,
        }


def build_report(sums: MetricSums) -> EvaluationReport:
    """Means, intervals and list metrics of some sums.

    Raises:
        DataError: no user was evaluated.
    """
    if not sums.users[:, 0].any():
        raise DataError(
            "no user has a held-out item, so nothing can be evaluated: hold items out with a split first"
        )
    picks: dict[str, list[int]] = {"all": [0, 1, 2]} | {name: [g] for g, name in enumerate(GROUPS)}
    users = {group: sums.users[pick].sum(axis=0) for group, pick in picks.items()}
    metrics = {
        group: {
            name: _estimate(values[pick].sum(axis=0), users[group]) for name, values in sums.metrics.items()
        }
        for group, pick in picks.items()
        if users[group][0] > 0
    }
    counts = {group: round(float(weights[0])) for group, weights in users.items()}
    bounds = (int(sums.protocol[0]), int(sums.protocol[1]))
    found = {} if sums.answers is None else sums.answers.report()
    answers = {name: value for name, value in found.items() if isfinite(value)}
    return EvaluationReport(counts, bounds, metrics, _lists(sums), round(float(sums.unscored[0])), answers)


def _estimate(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
    """values [1 + B] summed with weights [1 + B]; column 0 is the data itself."""
    bounds = interval(values[1:], weights[1:]) or (None, None)
    return Estimate(float(values[0] / weights[0]), *bounds)


def _lists(sums: MetricSums) -> dict[str, float]:
    if not sums.recommended.any():
        return {}
    k, recommended = int(sums.protocol[2]), sums.recommended
    out = {
        f"coverage@{k}": coverage(recommended),
        f"novelty@{k}": novelty(recommended, sums.seen, float(sums.population[0])),
        f"gini@{k}": gini(recommended),
    }
    total, known = sums.diversity
    return out | ({f"diversity@{k}": float(total / known)} if known > 0 else {})
