"""What training, evaluating, comparing and recommending give back: frozen objects that are also tables.

Letters: U users, n list length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedrec.core.errors import DataError
from fedrec.evaluation.report import Estimate
from fedrec_simulations.api.tables import Columns, Table


@dataclass(frozen=True)
class Evaluation(Table):
    """How good a model is on the test part.

    Attributes:
        name: of the run.
        report: the whole report in plain types, as in a run's `result.json`.
        notes: what must be known beside the figures, one sentence each.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> found = fedrec.train(fedrec.split(data), "popularity").evaluate()
        >>> found.value("full/hr@10")
        1.0
    """

    name: str
    report: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def value(self, metric: str, group: str = "all") -> float:
        """The mean of one metric.

        Args:
            metric: as "full/ndcg@10".
            group: of users by the length of their history: "all", "few", "middle" or "many".

        Raises:
            DataError: it was not measured.
        """
        return self.estimate(metric, group).value

    def estimate(self, metric: str, group: str = "all") -> Estimate:
        """The mean of one metric with its 95 % interval; see `value`."""
        measured = self.report["metrics"].get(group, {})
        if metric not in measured:
            known = ", ".join(measured) or "none"
            raise DataError(f"metric {metric!r} of group {group!r} was not measured: expected one of {known}")
        return Estimate(**measured[metric])

    def columns(self) -> Columns:
        """One row per group and metric: group, metric, value, low and high (95 % interval)."""
        rows = [
            (group, metric, found["value"], found["low"], found["high"])
            for group, metrics in self.report["metrics"].items()
            for metric, found in metrics.items()
        ]
        names = ("group", "metric", "value", "low", "high")
        return {name: [row[k] for row in rows] for k, name in enumerate(names)}

    def __str__(self) -> str:
        """Hit rate and NDCG at the first cut-off over all users; `to_frame` and `columns` have the rest."""
        found = self.report["metrics"]["all"]
        shown = [name for name in found if name.partition("/")[2].partition("@")[0] in ("hr", "ndcg")]
        lines = [_line(name, self.estimate(name)) for name in shown or found]
        return "\n".join([self.name, *lines, *self.notes])


@dataclass(frozen=True)
class Recommendations(Table):
    """Lists of one or several users, best item first.

    Attributes:
        rows: user, rank (from 1), item, title, score, and whether the user really chose the item, which was held out.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 5])
        >>> run = fedrec.train(fedrec.split(data), "popularity")
        >>> run.recommend(2, n=1).items()
        ['8']
    """

    rows: tuple[tuple[str, int, str, str, float, bool], ...]

    def items(self, user: Any = None) -> list[str]:
        """Ids of the recommended items, best first; of one user if given."""
        return [row[2] for row in self.rows if user is None or row[0] == str(user)]

    def columns(self) -> Columns:
        """One row per recommended item."""
        names = ("user", "rank", "item", "title", "score", "held_out")
        return {name: [row[k] for row in self.rows] for k, name in enumerate(names)}


@dataclass(frozen=True)
class Comparison(Table):
    """Several runs side by side.

    Attributes:
        rows: one per run, or centralised baseline, as plain values by column.
        comparable: whether all were evaluated on the same held-out items in the same way.
        notes: what must be known beside the figures.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> found = fedrec.compare([fedrec.train(data, "popularity")])
        >>> found.comparable, found.best("full/ndcg@10")
        (True, 'popularity')
    """

    rows: tuple[Mapping[str, Any], ...]
    comparable: bool = True
    notes: tuple[str, ...] = field(default=())

    def columns(self) -> Columns:
        """One row per run, the metrics by their names."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def best(self, metric: str = "full/ndcg@10") -> str:
        """Name of the run with the highest value.

        Raises:
            DataError: no run has the metric, or the runs cannot be compared.
        """
        if not self.comparable:
            raise DataError("the runs saw different data or held-out items: their figures do not compare")
        found = {row["run"]: row[metric] for row in self.rows if row.get(metric) is not None}
        if not found:
            raise DataError(f"metric {metric!r} was not measured in any of the runs: see columns()")
        return str(max(found, key=found.__getitem__))


@dataclass(frozen=True)
class SweepResult(Table):
    """Methods at several privacy budgets; see `fedrec.sweep`.

    Attributes:
        rows: one per method, epsilon and point of the other axes, over all seeds.
        conclusions: what the figures say, in sentences that are computed from them.
        note: what the figures are and what they are not.
    """

    rows: tuple[Mapping[str, Any], ...]
    conclusions: tuple[str, ...]
    note: str

    def columns(self) -> Columns:
        """One row per point."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}


def _line(name: str, found: Estimate) -> str:
    interval = "" if found.low is None else f"  [{found.low:.4f}, {found.high:.4f}]"
    return f"  {name:<20} {found.value:.4f}{interval}"


def listed(rows: Sequence[Sequence[Any]]) -> Recommendations:
    """Recommendations of plain rows."""
    return Recommendations(tuple(tuple(row) for row in rows))
