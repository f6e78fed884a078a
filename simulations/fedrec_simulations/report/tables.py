"""The comparison of runs as rows of text: one source for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from fedrec.evaluation.report import Estimate
from fedrec.privacy.noised_means import HELD_DATA, TUNING_NOT_COVERED
from fedrec_simulations.report.summary import HEADLINE, Summary, estimate
from fedrec_simulations.report.units import size

COLUMNS = ("privacy", *HEADLINE.values(), "95% interval", "rounds", "seconds", "up", "down")
#: Stands for a number that there is not.
DASH = "-"
#: Of figures that no run let out.
HELD_ROW = "  held data, exact"


def number(value: Estimate | None) -> str:
    """A metric to four digits, or a dash."""
    return DASH if value is None else f"{value.value:.4f}"


def bounds(value: Estimate | None) -> str:
    """Its interval."""
    return DASH if value is None or value.low is None else f"{value.low:.4f} - {value.high:.4f}"


def comparison(runs: Sequence[Summary]) -> list[list[str]]:
    """Name, then `COLUMNS`, of each run, followed by what its researcher measured and by its centralised baseline."""
    rows = []
    for run in runs:
        found = [run.estimate(metric) for metric in HEADLINE]
        rounds = str(run.result.get("rounds", "unfinished"))
        rows.append(
            [run.name, run.privacy, *map(number, found), bounds(found[-1]), rounds, f"{run.seconds:.1f}"]
        )
        rows[-1] += [size(run.bytes_up), size(run.bytes_down)]
        if run.held:
            found = [estimate(run.held, metric) for metric in HEADLINE]
            rows.append([HELD_ROW, "not covered", *map(number, found), bounds(found[-1]), *[DASH] * 4])
        if run.baseline:
            found = [run.baseline_estimate(metric) for metric in HEADLINE]
            rows.append(["  centralised baseline", "none", *map(number, found), bounds(found[-1])])
            rows[-1] += [str(run.baseline["epochs"]), f"{run.baseline['fit_seconds']:.1f}", DASH, DASH]
    return rows


def notes(runs: Sequence[Summary]) -> list[str]:
    """What must stand beside the figures of private runs; nothing for others."""
    private = [run for run in runs if run.is_private]
    lines = []
    if any((run.result.get("test") or {}).get("noised") for run in private):
        lines.append(
            "Figures of private runs are noised and charged; their intervals hold noise and sampling."
        )
    if any(run.held for run in runs):
        lines.append(f"{HELD_ROW.strip()}: {HELD_DATA}.")
    return [*lines, TUNING_NOT_COVERED] if private else lines
