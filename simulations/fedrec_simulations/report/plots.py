"""Plots as inline SVG: text stays text, axes take the page's colour, series a colour-blind-safe palette.

Colours: Okabe and Ito 2008, "Color Universal Design", without yellow and black, which vanish on white or on dark
pages. Every series has its own marker, too. Out of scope: what is plotted (`page`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedrec.evaluation.report import Estimate

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
#: Stands for the page's own text colour until the SVG is written.
INK = "#010203"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One learning curve; `chosen` marks one x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    chosen: float | None = None


def curves(lines: Sequence[Line], x_label: str, y_label: str, alt: str) -> str:
    """Values over rounds."""

    def draw(axes: Axes) -> None:
        for k, line in enumerate(lines):
            colour = PALETTE[k % len(PALETTE)]
            axes.plot(line.x, line.y, color=colour, label=line.name, marker=MARKERS[k % 6], markersize=3.5)
            if line.chosen is not None:
                axes.axvline(line.chosen, color=colour, linestyle=":", label=f"chosen: round {line.chosen:g}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="best", fontsize=10)

    return as_svg(alt, (6.2, 3.4), draw)


def intervals(
    rows: Sequence[tuple[str, Sequence[tuple[str, Estimate | None]]]], x_label: str, alt: str
) -> str:
    """Points with their intervals, one row per name, one marker per series within a row."""
    series = list(dict.fromkeys(name for _, points in rows for name, _ in points))

    def draw(axes: Axes) -> None:
        step = 0.7 / max(len(series), 1)
        for k, name in enumerate(series):
            where, found = [], []
            for row, (_, points) in enumerate(rows):
                value = dict(points).get(name)
                if value is not None:
                    where.append(row + (k - (len(series) - 1) / 2) * step)
                    found.append(value)
            _points(axes, found, where, name, k)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(x_label)
        axes.grid(visible=False, axis="y")
        if len(series) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=10)

    height = 1.2 + len(rows) * max(0.36, 0.2 * len(series))
    return as_svg(alt, (6.2, height), draw)


def _points(axes: Axes, found: Sequence[Estimate], where: Sequence[float], name: str, k: int) -> None:
    values = [value.value for value in found]
    low = [value.value - (value.value if value.low is None else value.low) for value in found]
    high = [(value.value if value.high is None else value.high) - value.value for value in found]
    # A bootstrap interval need not hold the mean where there are very few users.
    spread = [[max(0.0, x) for x in low], [max(0.0, x) for x in high]]
    colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
    axes.errorbar(
        values,
        where,
        xerr=spread,
        fmt=marker,
        color=colour,
        label=name,
        capsize=3,
        markersize=6,
        linewidth=1.5,
    )


def as_svg(alt: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """What `draw` puts on one pair of axes, as SVG for a page; `alt` says it in words."""
    with _style(alt):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # The page decides how wide a plot is; the view box keeps its shape.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Ids inside an SVG depend on the salt alone: pages are the same every time, plots on one page do not clash."""
    settings: Mapping[str, object] = STYLE | {"svg.hashsalt": salt}
    with matplotlib.rc_context(dict(settings)):
        yield
