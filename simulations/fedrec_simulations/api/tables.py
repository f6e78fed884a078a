"""Results that are also tables: as a frame of pandas, polars or pyarrow, as text, and as HTML in notebooks."""

from __future__ import annotations

import html
import importlib.util
import math
from abc import ABC, abstractmethod
from typing import Any, Literal

from fedrec.core.errors import EnvironmentProblem
from fedrec.core.extras import needs

Backend = Literal["pandas", "polars", "pyarrow"]
BACKENDS: tuple[Backend, ...] = ("pandas", "polars", "pyarrow")
Columns = dict[str, list[Any]]


class Table(ABC):
    """A result whose rows can be listed."""

    @abstractmethod
    def columns(self) -> Columns:
        """Name of each column to its values, all equally long; None where a value is missing."""

    def to_frame(self, backend: Backend | None = None) -> Any:
        """The rows as a data frame.

        Args:
            backend: the library of the frame; None: the first that is installed of pandas, polars and pyarrow.

        Raises:
            EnvironmentProblem: narwhals or the library is not installed.
        """
        return as_frame(self.columns(), backend)

    def __len__(self) -> int:
        return len(next(iter(self.columns().values()), []))

    def __str__(self) -> str:
        cells = _cells(self.columns())
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = [_is_number(values) for values in self.columns().values()]
        return "\n".join(_line(row, widths, numeric) for row in cells)

    def _repr_html_(self) -> str:
        head, *rows = _cells(self.columns())
        title = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        return f"<table><thead><tr>{title}</tr></thead><tbody>{body}</tbody></table>"


def as_frame(columns: Columns, backend: Backend | None = None) -> Any:
    """Columns as a data frame; see `Table.to_frame`."""
    with needs("to_frame()"):
        import narwhals
    chosen = backend or next((name for name in BACKENDS if importlib.util.find_spec(name)), None)
    if chosen is None or importlib.util.find_spec(chosen) is None:
        raise EnvironmentProblem(
            f"to_frame() needs {chosen or 'pandas, polars or pyarrow'}, which is not installed: pip install "
            f"{chosen or 'pandas'}"
        )
    return narwhals.from_dict(columns, backend=chosen).to_native()


def _cells(columns: Columns) -> list[list[str]]:
    """The header and the rows, as text."""
    rows = zip(*columns.values(), strict=True)
    return [list(columns), *([_text(value) for value in row] for row in rows)]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _is_number(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in values)


def _line(row: list[str], widths: list[int], numeric: list[bool]) -> str:
    cells = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    ]
    return "  ".join(cells).rstrip()
