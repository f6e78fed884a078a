"""The page of a sweep: what the numbers say first, then curves, then the table; nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedrec.core.errors import RunError
from fedrec.core.files import PUBLIC, atomic_write
from fedrec.privacy.noised_means import HELD_DATA
from fedrec_simulations.report import html
from fedrec_simulations.report.tables import DASH
from fedrec_simulations.sweep import _plots as plots
from fedrec_simulations.sweep.reading import read, sentences
from fedrec_simulations.sweep.spec import SweepSpec
from fedrec_simulations.sweep.table import CAVEAT, SLICES, Point

COLUMNS = (
    "method and epsilon", "seeds", "all users", "worst to best seed", "HR", "sampled NDCG", "short histories",
    "long tail", "as released", "epsilon per user", "epsilon per interaction", "noise multiplier",
    "noise to signal", "seconds",
)  # fmt: skip


def write_page(folder: Path, spec: SweepSpec, points: Sequence[Point], facts: Mapping[str, Any]) -> Path:
    """Write `sweep.html` and one PNG per slice.

    Args:
        folder: of the sweep.
        spec: the experiment.
        points: over seeds, finished ones and others.
        facts: `users`: evaluated users by slice; `description`: of the data; `cells`, `finished`: how many.

    Raises:
        RunError: a file cannot be written.
    """
    panels = _panels(spec, points)
    page = html.render("sweep.html", _contents(spec, points, facts, panels), "fedrec_simulations.sweep")
    try:
        for name, (title, draw) in panels.items():
            atomic_write(folder / f"{name}.png", plots.png(draw, f"{title} ({CAVEAT})"), PUBLIC)
    except OSError as error:
        raise RunError(
            f"page in {folder} cannot be written ({error.strerror}): give another --out"
        ) from error
    return html.write(folder / "sweep.html", page)


def _panels(spec: SweepSpec, points: Sequence[Point]) -> dict[str, tuple[str, plots.Draw]]:
    """File name to title and drawing, the slices with results."""
    metric = spec.sweep.metric
    private = {method.name for method in spec.method if method.private and not method.local_only}
    curves = [point for point in points if point.method in private]
    lines = [point for point in points if point.method not in private]
    panels = {}
    for prefix, title in SLICES.items():
        if any(prefix + metric in point.metrics for point in points):
            name = "quality" + (f"-{prefix.rstrip('/')}" if prefix else "")
            panels[name] = (title, plots.quality(curves, lines, prefix + metric, metric))
    return panels


def _contents(
    spec: SweepSpec,
    points: Sequence[Point],
    facts: Mapping[str, Any],
    panels: Mapping[str, tuple[str, plots.Draw]],
) -> dict[str, Any]:
    reading = read(spec, points)
    return {
        "title": spec.name,
        "caveat": CAVEAT,
        "held": HELD_DATA,
        "sentences": sentences(reading),
        "metric": spec.sweep.metric,
        "evaluate": spec.sweep.evaluate,
        "seeds": len(spec.sweep.seeds),
        "panels": [(title, Markup(plots.svg(draw, title))) for title, draw in panels.values()],
        "columns": COLUMNS,
        "rows": [row(point, spec.sweep.metric) for point in points],
        "winners": [
            (f"{epsilon:g}", best.series, f"{reading.value(best).mean:.4f}")
            for epsilon in reading.epsilons
            if (best := reading.winner(epsilon))
        ],
        "errors": [(f"{p.series}, epsilon {p.epsilon:g}", p.error) for p in points if p.error],
        "local_only": any(method.local_only for method in spec.method),
        "methods": [(method.name, _settings(method.model_dump(mode="json"))) for method in spec.method],
    } | dict(facts)


def row(point: Point, metric: str) -> list[str]:
    """One point as text, under `COLUMNS`."""
    cut = metric.partition("@")[2]

    def mean(name: str) -> str:
        return f"{point.metrics[name].mean:.4f}" if name in point.metrics else DASH

    def paid(name: str, style: str) -> str:
        value = point.privacy.get(name)
        return DASH if value is None else format(value, style)

    spread, said = point.metrics.get(metric), f"released/{metric}"
    upper = "≤ " if point.privacy.get("unit") == "user" else ""
    return [
        point.series + (f" · {point.epsilon:g}" if point.epsilon < float("inf") else " · no noise"),
        str(point.seeds),
        mean(metric),
        f"{spread.low:.4f} - {spread.high:.4f}" if spread else DASH,
        mean(f"full/hr@{cut}"),
        mean(f"sampled/ndcg@{cut}"),
        mean(f"small/{metric}"),
        mean(f"tail/{metric}"),
        f"{mean(said)} ± {point.metrics[f'released_std/{metric}'].mean:.4f}"
        if said in point.metrics
        else DASH,
        paid("epsilon_user", ".2f"),
        (upper if point.privacy else "") + paid("epsilon_interaction", ".2f"),
        paid("noise_multiplier", ".2f"),
        paid("noise_to_signal", ".2f"),
        f"{point.seconds:.1f}",
    ]


def _settings(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Everything a method says, as dotted keys."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _settings(value, f"{prefix}{key}.")
        elif value is not None and key != "name":
            lines.append((prefix + key, str(value)))
    return lines
