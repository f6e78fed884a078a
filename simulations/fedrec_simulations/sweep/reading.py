"""What the numbers of a sweep say, in words, for someone who must decide; every sentence is computed.

Two points are told apart only where the ranges over seeds do not overlap. Out of scope: drawing, tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedrec_simulations.sweep.spec import SweepSpec
from fedrec_simulations.sweep.table import Point, Spread


@dataclass(frozen=True)
class Reading:
    """The points of a sweep, sorted by the part that they play.

    Attributes:
        metric: by which methods are compared.
        private: points with noise.
        ceiling: the best point without noise.
        local: the local-only point.
        popular: series that only count popularity.
    """

    metric: str
    private: list[Point]
    ceiling: Point | None
    local: Point | None
    popular: frozenset[str]

    @property
    def epsilons(self) -> list[float]:
        """Budgets with results, growing."""
        return sorted({point.epsilon for point in self.private})

    def winner(self, epsilon: float, *, popular: bool | None = None) -> Point | None:
        """The best point at a budget; only among popularity (True) or the others (False) if asked."""
        some = [
            point
            for point in self.private
            if point.epsilon == epsilon and popular in (None, point.series in self.popular)
        ]
        return max(some, key=lambda point: self.value(point).mean, default=None)

    def value(self, point: Point) -> Spread:
        """The metric of a point."""
        return point.metrics[self.metric]


def read(spec: SweepSpec, points: Sequence[Point]) -> Reading:
    """Sort the points that have results."""
    metric = spec.sweep.metric
    kinds = {method.name: method for method in spec.method}
    good = [point for point in points if metric in point.metrics]
    free = [p for p in good if math.isinf(p.epsilon) and not kinds[p.method].local_only]
    return Reading(
        metric,
        [p for p in good if math.isfinite(p.epsilon)],
        max(free, key=lambda p: p.metrics[metric].mean, default=None),
        next((p for p in good if kinds[p.method].local_only), None),
        frozenset(p.series for p in good if (kinds[p.method].model or {}).get("kind") == "popularity"),
    )


def sentences(reading: Reading) -> list[str]:
    """The first paragraph: what each budget keeps, where popularity is as good, what no one needs to share for."""
    if not reading.private:
        return ["No cell with noise has a result yet, so nothing can be said about the price of privacy."]
    lines = [_winners(reading), _rivals(reading), _popularity(reading), _alone(reading), _tail(reading)]
    return [line for line in lines if line]


def _winners(reading: Reading) -> str:
    """Who is best where, and how much of the quality without privacy that keeps."""
    best: dict[str, list[tuple[float, Spread]]] = {}
    for epsilon in reading.epsilons:
        if point := reading.winner(epsilon):
            best.setdefault(point.series, []).append((epsilon, reading.value(point)))
    top = reading.value(reading.ceiling).mean if reading.ceiling is not None else 0.0
    parts = []
    for series, wins in best.items():
        where = (
            "at every budget shown" if len(best) == 1 else f"at epsilon {_and([f'{e:g}' for e, _ in wins])}"
        )
        kept = [
            f"{spread.mean:.4f}" + (f" ({spread.mean / top:.0%})" if top > 0 else "") for _, spread in wins
        ]
        values = _and([f"{value} at epsilon {e:g}" for value, (e, _) in zip(kept, wins, strict=True)])
        parts.append(f"{series} is best {where}, with {values}")
    without = (
        f"; without privacy {reading.ceiling.series} reaches {top:.4f} (100%)" if reading.ceiling else ""
    )
    return "; ".join(parts) + without + "."


def _rivals(reading: Reading) -> str:
    """Where seeds alone may have decided who is best."""
    close = []
    for epsilon in reading.epsilons:
        best = reading.winner(epsilon)
        assert best is not None
        low = reading.value(best).low
        same = [p for p in reading.private if p.epsilon == epsilon and p is not best]
        names = [p.series for p in same if reading.value(p).high >= low]
        if names:
            close.append(f"at epsilon {epsilon:g} {_and(names)} cannot be told apart from {best.series}")
    return f"Over the seeds, {'; '.join(close)}." if close else ""


def _popularity(reading: Reading) -> str:
    """Where a noisy count of what is popular does as well as anything that learns about users."""
    beaten: list[float] = []
    equal: list[float] = []
    for epsilon in reading.epsilons:
        counts, other = reading.winner(epsilon, popular=True), reading.winner(epsilon, popular=False)
        if counts is None or other is None:
            continue
        (beaten if reading.value(other).low > reading.value(counts).high else equal).append(epsilon)
    if not beaten and not equal:
        return ""
    if not equal:
        return "At every budget shown, learning about users beats ranking by noisy popularity."
    if not beaten:
        return (
            "At no budget shown does anything clearly beat ranking by noisy popularity: count, do not learn."
        )
    return (
        f"Ranking by noisy popularity is as good as anything else at epsilon {_and([f'{e:g}' for e in equal])}; "
        f"learning about users pays at epsilon {_and([f'{e:g}' for e in beaten])}."
    )


def _alone(reading: Reading) -> str:
    """Where a device does as well with no one's help."""
    if reading.local is None:
        return ""
    own = reading.value(reading.local)
    useless = [e for e in reading.epsilons if (w := reading.winner(e)) and reading.value(w).low <= own.high]
    if not useless:
        return f"A device alone reaches {own.mean:.4f}, less than the best method at every budget shown."
    return (
        f"A device alone, which shares nothing, reaches {own.mean:.4f}: at epsilon "
        f"{_and([f'{e:g}' for e in useless])} nothing that learns together is clearly better."
    )


def _tail(reading: Reading) -> str:
    """Whether the best methods find anything but what is popular anyway."""
    name = f"tail/{reading.metric}"
    if reading.ceiling is None or reading.ceiling.metrics.get(name, Spread(0, 0, 0, 0)).mean <= 0:
        return ""
    top = reading.ceiling.metrics[name].mean
    kept = [
        f"{point.metrics[name].mean / top:.0%} at epsilon {epsilon:g}"
        for epsilon in reading.epsilons
        if (point := reading.winner(epsilon)) and name in point.metrics
    ]
    return f"Of the quality on the long tail, the best methods keep {_and(kept)}." if kept else ""


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
