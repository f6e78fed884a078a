"""Quality against epsilon: one panel per slice, as SVG for the page and as PNG for slides.

Budgets lie on a logarithmic axis; no noise has a place of its own behind the largest. Bands run from the worst to
the best seed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedrec_simulations.report.plots import INK, MARKERS, PALETTE, STYLE, as_svg
from fedrec_simulations.sweep.table import Point

INCHES = (6.2, 4.2)
LINES = ("--", ":", "-.")
Draw = Callable[[Axes], None]


def quality(points: Sequence[Point], lines: Sequence[Point], metric: str, label: str) -> Draw:
    """What draws a metric against epsilon.

    Args:
        points: of private methods, each series a curve; without noise at the right.
        lines: points that no budget touches, as horizontal lines.
        metric: name in the points.
        label: of the vertical axis.
    """
    place = places([point.epsilon for point in points])
    series = list(dict.fromkeys(point.series for point in points))

    def draw(axes: Axes) -> None:
        for k, name in enumerate(series):
            own = sorted(
                (p for p in points if p.series == name and metric in p.metrics), key=lambda p: p.epsilon
            )
            if own:
                _curve(axes, own, place, metric, k)
        for k, line in enumerate(line for line in lines if metric in line.metrics):
            value = line.metrics[metric].mean
            axes.axhline(value, color=INK, linestyle=LINES[k % len(LINES)], linewidth=1.3, label=line.series)
        axes.set_xticks(list(place.values()), [_tick(epsilon) for epsilon in place])
        axes.set_xlabel("epsilon (smaller: more private)")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=9)

    return draw


def _curve(axes: Axes, own: Sequence[Point], place: Mapping[float, float], metric: str, k: int) -> None:
    colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
    x = [place[point.epsilon] for point in own]
    spreads = [point.metrics[metric] for point in own]
    axes.fill_between(
        x, [s.low for s in spreads], [s.high for s in spreads], color=colour, alpha=0.2, linewidth=0
    )
    means = [s.mean for s in spreads]
    axes.plot(x, means, color=colour, marker=marker, markersize=5, label=own[0].series)


def places(epsilons: Sequence[float]) -> dict[float, float]:
    """Where each budget stands on the axis, growing; infinity a fair step behind the last."""
    finite = sorted({epsilon for epsilon in epsilons if math.isfinite(epsilon)})
    place = {epsilon: math.log10(epsilon) for epsilon in finite}
    if any(math.isinf(epsilon) for epsilon in epsilons):
        last, first = (place[finite[-1]], place[finite[0]]) if finite else (0.0, 0.0)
        place[math.inf] = last + max(0.2, 0.2 * (last - first))
    return place


def _tick(epsilon: float) -> str:
    return f"{epsilon:g}" if math.isfinite(epsilon) else "no\nnoise"


def svg(draw: Draw, alt: str) -> str:
    """For a page."""
    return as_svg(alt, INCHES, draw)


def png(draw: Draw, title: str) -> bytes:
    """For slides: black on white."""
    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=INCHES, layout="constrained", dpi=160)
        axes = figure.add_subplot()
        draw(axes)
        figure.suptitle(title, fontsize=11)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
