"""The HTML report: one page without any outside reference, for one run or for several side by side.

What is shown is gathered here as plain values; `template.html` lays it out and escapes every text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedrec.core.errors import DataError
from fedrec_simulations.report import html, plots
from fedrec_simulations.report.examples import recommend, typical_users
from fedrec_simulations.report.summary import GROUPS, HEADLINE, Summary, estimate
from fedrec_simulations.report.tables import COLUMNS, DASH, HELD_ROW, bounds, comparison, notes, number
from fedrec_simulations.report.units import size

LISTS = {
    "coverage": "share of the catalogue that is recommended to anyone",
    "novelty": "mean surprise of a recommended item, in bits",
    "gini": "how unevenly recommendations spread over items: 0 even, 1 all on one",
    "diversity": "mean distance of the categories within a list: 0 alike, 1 nothing in common",
}
ANSWERS = {
    "auc": "chance that something that happened was called more likely than something that did not; "
    "auc_within: of one shown, and the mean over users",
    "log_loss": "mean surprise by what happened, in nats; likelihood is exp(-log_loss)",
    "rmse": "root of the mean squared error of probabilities",
    "calibration": "mean distance of what was said from how often it happened, in 15 classes",
    "mean, outcome": "what was said and what happened, on average",
}


def write_page(
    out: Path, runs: Sequence[Summary], *, comparable: bool = True, examples_of: Summary | None = None
) -> Path:
    """Write the page of some runs.

    Args:
        out: the HTML file.
        runs: at least one.
        comparable: whether they were evaluated alike; if not, the page says so.
        examples_of: the run whose lists are shown; the last one by default.

    Raises:
        RunError: the page cannot be written.
    """
    contents = _contents(runs, comparable, examples_of or runs[-1])
    return html.write(out, html.render("template.html", contents))


def _contents(runs: Sequence[Summary], comparable: bool, examples_of: Summary) -> dict[str, Any]:
    evaluated = [run for run in runs if run.exact]
    scored = [run for run in runs if run.result.get("test") or run.held]
    return {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        "runs": [_run(run) for run in runs],
        "warnings": list(dict.fromkeys(line for run in runs for line in run.config.warnings())),
        "comparable": comparable,
        "columns": COLUMNS,
        "rows": comparison(runs),
        "notes": notes(runs),
        "score_plots": [Markup(_scores(scored, metric)) for metric in HEADLINE] if scored else [],
        "curve_plots": [Markup(svg) for svg in _curves(runs)],
        "loss_plots": [
            Markup(_loss(run)) for run in runs if sum("loss" in record for record in run.records) > 1
        ],
        "group_plots": [Markup(_groups(evaluated, metric)) for metric in HEADLINE] if evaluated else [],
        "group_rows": _group_rows(evaluated),
        "group_columns": _group_columns(evaluated),
        "list_rows": _part_rows(evaluated, "lists"),
        "list_columns": _part_columns(evaluated, "lists"),
        "answer_rows": _part_rows(evaluated, "answers"),
        "answer_columns": _part_columns(evaluated, "answers"),
        "list_meanings": LISTS,
        "answer_meanings": ANSWERS,
        "bytes_rows": [
            [run.name, size(run.bytes_up), size(run.bytes_down), str(len(run.records)), *_totals(run)]
            for run in runs
        ],
        "data": [_data(run) for run in runs[:1]] if comparable else [_data(run) for run in runs],
        "examples": _examples(examples_of),
        "examples_name": examples_of.name,
    }


def _run(run: Summary) -> dict[str, Any]:
    config = run.config.model_dump(mode="json")
    return {
        "name": run.name,
        "folder": str(run.run.path),
        "model": run.model,
        "engine": run.started["engine"],
        "command": run.started["command"],
        "nodes": run.run.data.get("nodes", 1),
        "rounds": run.result.get("rounds", "not finished"),
        "config": {
            f"{section}.{key}": value for section in config for key, value in _flat(config[section]).items()
        },
        "environment": _environment(run),
    }


def _flat(section: Any) -> dict[str, Any]:
    return section if isinstance(section, dict) else {"": section}


def _environment(run: Summary) -> dict[str, str]:
    path = run.run.path / "environment.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


# Plots -------------------------------------------------------------------------------------------------


def _scores(runs: Sequence[Summary], metric: str) -> str:
    rows = []
    for run in runs:
        points = [("federated", run.estimate(metric))]
        if run.held:
            points.append((HELD_ROW.strip(), estimate(run.held, metric)))
        if run.baseline:
            points.append(("centralised baseline", run.baseline_estimate(metric)))
        rows.append((run.name, points))
    name = HEADLINE[metric]
    return plots.intervals(rows, f"{name} (95% interval)", f"{name} of every run, with intervals")


def _groups(runs: Sequence[Summary], metric: str) -> str:
    few, many = _exact(runs[0])["group_bounds"]
    labels = {"few": f"few (<{few})", "middle": f"middle ({few} to {many - 1})", "many": f"many (≥{many})"}
    rows = [
        (
            _named(run),
            [
                (labels[group], found)
                for group in GROUPS
                if (found := estimate(run.exact, metric, group)) is not None
            ],
        )
        for run in runs
    ]
    name = HEADLINE[metric]
    return plots.intervals(rows, f"{name} (95% interval)", f"{name} by group of users")


def _curves(runs: Sequence[Summary]) -> list[str]:
    """Validation metric per round, one plot per metric by which rounds were chosen."""
    lines: dict[str, list[plots.Line]] = {}
    for run in runs:
        metric = run.config.federation.select_metric
        evaluated = [r for r in run.records if r["phase"] == "tuning" and metric in r.get("validation", {})]
        if len(evaluated) > 1:
            x, y = [r["round"] for r in evaluated], [r["validation"][metric] for r in evaluated]
            chosen = run.result.get("rounds")
            lines.setdefault(metric, []).append(plots.Line(run.name, x, y, chosen))
    return [
        plots.curves(some, "round", f"{metric} on the validation part", f"{metric} per round")
        for metric, some in lines.items()
    ]


def _loss(run: Summary) -> str:
    lines = []
    for phase, label in (("tuning", "choosing rounds"), ("refit", "final training")):
        # A private run does not let the loss out.
        records = [r for r in run.records if r["phase"] == phase and "loss" in r]
        if records:
            x, y = [r["round"] for r in records], [r["loss"] for r in records]
            lines.append(plots.Line(f"{run.name}: {label}", x, y))
    return plots.curves(lines, "round", "training loss per example", f"training loss of {run.name} per round")


# Tables ------------------------------------------------------------------------------------------------


def _totals(run: Summary) -> list[str]:
    totals = run.result.get("totals")
    return [size(totals["bytes_up"]), size(totals["bytes_down"])] if totals else [DASH, DASH]


def _group_columns(runs: Sequence[Summary]) -> list[str]:
    if not runs:
        return []
    users = _exact(runs[0])["n_users"]
    return [f"{group}: {users[group]} users" for group in ("all", *GROUPS)]


def _group_rows(runs: Sequence[Summary]) -> list[list[str]]:
    rows = []
    for run in runs:
        for metric, name in HEADLINE.items():
            found = [estimate(run.exact, metric, group) for group in ("all", *GROUPS)]
            if any(found):
                rows.append(
                    [f"{_named(run)}: {name}", *(f"{number(e)} ({bounds(e)})" if e else DASH for e in found)]
                )
    return rows


def _part_columns(runs: Sequence[Summary], part: str) -> list[str]:
    """Names of the figures of a part of the test ("lists", "answers") that some run has."""
    return list(dict.fromkeys(name for run in runs for name in _exact(run).get(part, {})))


def _part_rows(runs: Sequence[Summary], part: str) -> list[list[str]]:
    rows, columns = [], _part_columns(runs, part)
    for run in runs:
        values = [_exact(run).get(part, {}).get(name) for name in columns]
        rows.append([_named(run), *(DASH if value is None else f"{value:.4f}" for value in values)])
    return rows if columns else []


def _exact(run: Summary) -> dict[str, Any]:
    """The whole report of a run that has one."""
    assert run.exact is not None
    return run.exact


def _named(run: Summary) -> str:
    """The run, and whether its figures are those of held data."""
    return f"{run.name} (held data)" if run.held else run.name


def _data(run: Summary) -> dict[str, Any]:
    data = run.run.data
    cleaning = data.get("cleaning") or {}
    split = data.get("split", {})
    parts = [
        [name, f"{value['users']:,}", f"{value['interactions']:,}"]
        for name, value in split.items()
        if isinstance(value, dict)
    ]
    counts = [
        [name.replace("_", " "), f"{value:,}"] for name, value in split.items() if isinstance(value, int)
    ]
    return {
        "name": data.get("name", "?"),
        "rule": data.get("rule", {}),
        "read": cleaning.get("read"),
        "steps": cleaning.get("steps", []),
        "parts": parts,
        "counts": counts,
    }


def _examples(run: Summary) -> list[dict[str, Any]]:
    if not run.result:
        return []
    try:
        users = [recommend(run.run, user, n=10) for user in typical_users(run.run)]
    except DataError:
        # A run whose users have no history at all has no one to show.
        return []
    return [shown.as_dict() for shown in users]
