"""The results of a sweep as one table: a row per cell, and a row per point with its spread over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.core.files import PUBLIC, atomic_write
from fedrec_simulations.sweep.cells import Axes, Cell, CellResult

#: Said on every output.
CAVEAT = "simulated noise, public data, tuning not charged"
SLICES = {
    "": "all users",
    "small/": "users with short histories",
    "tail/": "items outside the popular fifth",
}
PRIVACY = ("unit", "delta", "epsilon_user", "epsilon_interaction", "noise_multiplier", "noise_to_signal")
Row = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A metric over seeds."""

    mean: float
    low: float
    high: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Mean, smallest, largest, standard deviation (n - 1; 0 for one seed)."""
        mean = math.fsum(values) / len(values)
        spread = math.fsum((x - mean) ** 2 for x in values) / max(len(values) - 1, 1)
        return cls(mean, min(values), max(values), math.sqrt(spread))


@dataclass(frozen=True)
class Point:
    """One method at one budget and one point of the other axes, over all seeds that are there."""

    method: str
    epsilon: float
    axes: Axes
    seeds: int
    metrics: Mapping[str, Spread]
    privacy: Mapping[str, Any]
    seconds: float
    error: str | None

    @property
    def series(self) -> str:
        """What a line of a plot is called: the method, and the other axes where there are any."""
        return ", ".join([self.method, *(f"{key.partition('.')[2]} {value}" for key, value in self.axes)])


def points(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> list[Point]:
    """One point per method, axes and epsilon, in the order of the cells; seeds without metrics are left out."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(json.dumps([cell.method, cell.axes, str(cell.epsilon)], default=str), []).append(
            cell
        )
    return [_point(some, [results[c.key] for c in some if c.key in results]) for some in groups.values()]


def _point(cells: Sequence[Cell], results: Sequence[CellResult]) -> Point:
    good = [result for result in results if result.error is None]
    names = list(good[0].metrics) if good else []
    return Point(
        cells[0].method,
        cells[0].epsilon,
        cells[0].axes,
        len(good),
        {name: Spread.of([result.metrics[name] for result in good]) for name in names},
        good[0].privacy if good else {},
        math.fsum(result.seconds for result in good) / max(len(good), 1),
        next((result.error for result in results if result.error), None),
    )


def rows(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> list[Row]:
    """One row per finished cell, all with the same columns, in the order of the cells."""
    found = [(cell, results[cell.key]) for cell in cells if cell.key in results]
    axes = dict.fromkeys(key for cell in cells for key, _ in cell.axes)
    metrics = dict.fromkeys(name for _, result in found for name in result.metrics)
    return [
        {"method": cell.method, "epsilon": cell.epsilon}
        | {key: _text(dict(cell.axes).get(key)) for key in axes}
        | {"seed": cell.seed}
        | {name: result.metrics.get(name) for name in metrics}
        | {f"users_{name}": result.users.get(name) for name in ("all", "small", "tail")}
        | {name: result.privacy.get(name) for name in PRIVACY}
        | {"seconds": result.seconds, "error": result.error, "note": CAVEAT}
        for cell, result in found
    ]


def _text(value: Any) -> str | None:
    # One column, one type: an axis may hold numbers for one method and words for another.
    return None if value is None else str(value)


def write_tables(folder: Path, cells: Sequence[Cell], results: Mapping[str, CellResult], about: Row) -> None:
    """Write `sweep.csv`, `sweep.parquet` (a row per cell) and `sweep.json` (with `about`, and points over seeds)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = rows(cells, results)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(made[0]) if made else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    atomic_write(folder / "sweep.csv", text.getvalue().encode(), PUBLIC)
    binary = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(made), binary)
    atomic_write(folder / "sweep.parquet", binary.getvalue(), PUBLIC)
    document = about | {"note": CAVEAT, "points": [as_dict(p) for p in points(cells, results)], "cells": made}
    written = (json.dumps(plain(document), indent=2, allow_nan=False) + "\n").encode()
    atomic_write(folder / "sweep.json", written, PUBLIC)


def as_dict(point: Point) -> Row:
    """One point in plain types."""
    return {
        "method": point.method,
        "epsilon": point.epsilon,
        "axes": dict(point.axes),
        "seeds": point.seeds,
        "metrics": {name: vars(spread).copy() for name, spread in point.metrics.items()},
        "privacy": dict(point.privacy),
        "seconds": point.seconds,
        "error": point.error,
    }


def plain(value: Any) -> Any:
    """Strict JSON: infinities become the word `inf`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
