"""Several runs side by side, with the centralised baseline of each where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrec.core.errors import DataError
from fedrec_simulations.api.results import Comparison, Evaluation
from fedrec_simulations.api.run import Run
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.features import category_matrix
from fedrec_simulations.report.summary import privacy_of, question_of

#: What is shown unless the caller asks for other metrics.
METRICS = ("full/ndcg@10", "sampled/hr@10", "sampled/ndcg@10")
#: The metric whose interval is shown.
INTERVAL = "full/ndcg@10"


def compare(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = METRICS,
    exact: bool = False,
    baseline: bool = False,
) -> Comparison:
    """Runs side by side, on the test part.

    Args:
        runs: finished, at least one.
        metrics: means over all users that are shown.
        exact: compute exact figures of private runs; see `fedrec.evaluate`.
        baseline: train the centralised baseline of each run, too: the same recommender on the pooled data.

    Returns:
        One row per run: name, kind of model, privacy, metrics over all users, 95 % interval of full-rank NDCG@10,
        rounds, seconds, bytes that a user sends and receives in a round.

    Raises:
        DataError: no runs, or nothing is held out.

    Example:
        >>> import fedrec
        >>> data = fedrec.from_arrays(user=[1, 1, 1, 2, 2, 2], item=[7, 8, 9, 7, 9, 8])
        >>> runs = [fedrec.train(data, kind) for kind in ("popularity", "item_knn")]
        >>> fedrec.compare(runs).columns()["run"]
        ['popularity', 'item_knn']
    """
    if not runs:
        raise DataError("there are no runs to compare: give at least one")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for run in runs:
        found = _evaluated(run, exact)
        rows.append(_row(run, found, metrics))
        notes += found.notes if found else [f"run {run.name!r} released no metrics"]
        if baseline:
            rows.append(_baseline(run, metrics))
    questions = {question_of(run.experiment, run.split) for run in runs}
    return Comparison(tuple(rows), len(questions) == 1, tuple(dict.fromkeys(notes)))


def _evaluated(run: Run, exact: bool) -> Evaluation | None:
    """Figures of a run, or None where a private run released none."""
    private = run.experiment.privacy.unit != "none"
    if private and not exact and run.result.get("test") is None:
        return None
    return run.evaluate(exact=exact)


def _row(run: Run, found: Evaluation | None, shown: Sequence[str]) -> dict[str, Any]:
    last = run.records[-1] if run.records else {}
    row: dict[str, Any] = {
        "run": run.name,
        "model": run.experiment.model.kind,
        "privacy": privacy_of(run.experiment),
    }
    row |= _figures(found.report["metrics"]["all"] if found else {}, shown)
    return row | {
        "rounds": run.rounds,
        "seconds": float(sum(record["seconds"] for record in run.records)),
        "bytes_up": last.get("bytes_up_per_user"),
        "bytes_down": last.get("bytes_down_per_user"),
    }


def _baseline(run: Run, shown: Sequence[str]) -> dict[str, Any]:
    made = fit_baseline(run.experiment, run.split, category_matrix(run.catalog), run.source.features)
    metrics = made.report.as_dict()["metrics"]["all"]
    row: dict[str, Any] = {
        "run": f"{run.name}, centralised baseline",
        "model": run.experiment.model.kind,
        "privacy": "none",
    }
    return row | _figures(metrics, shown) | {"rounds": made.epochs, "seconds": made.fit_seconds}


def _figures(
    metrics: Mapping[str, Mapping[str, float | None]], shown: Sequence[str]
) -> dict[str, float | None]:
    """Means by name, and one interval."""
    values: dict[str, float | None] = {name: metrics.get(name, {}).get("value") for name in shown}
    if INTERVAL in shown:
        bounds = metrics.get(INTERVAL, {})
        values |= {f"{INTERVAL} {end}": bounds.get(end) for end in ("low", "high")}
    return values
