"""What is asked of a table and what came out: fields, coded columns, and a report of unusable rows.

Ids are kept as codes into a table of distinct texts: 32 million rows of text would not fit a small machine.
Out of scope: file formats (`delimited`, `json_lines`, `parquet`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.core.interactions import FloatArray, IntArray, Interactions

Kind = Literal["id", "text", "number", "seconds", "milliseconds", "date"]
#: Kinds of which a column is coded texts; of "text", unlike an id, nothing is demanded.
TEXTS = ("id", "text")
#: Makes [n, R] vectors of n texts.
Reader = Callable[[Sequence[str]], FloatArray]
EXAMPLES = 5
#: Numbers are kept in single precision.
LARGEST = 3.0e38
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "\\n"})


@dataclass(frozen=True)
class Field:
    """One column that is read: its role here, its name (or position) in the file, what its values are."""

    role: str
    column: str | int
    kind: Kind


@dataclass(frozen=True)
class RowProblem:
    """Why one row was left out; `line` counts from 1, the header included (Parquet: the row)."""

    line: int
    kind: Literal["missing", "malformed"]
    reason: str


@dataclass
class RowReport:
    """How many rows a reader met, and those it left out.

    Attributes:
        source: the file.
        rows: rows with data, bad ones included.
        missing: rows in which a needed field is empty.
        malformed: rows with a wrong number of fields or a value that cannot be read.
        examples: the first few of both.
    """

    source: str
    rows: int = 0
    missing: int = 0
    malformed: int = 0
    examples: list[RowProblem] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Rows left out."""
        return self.missing + self.malformed

    def add(self, line: int, kind: Literal["missing", "malformed"], reason: str) -> None:
        """Note one bad row."""
        if kind == "missing":
            self.missing += 1
        else:
            self.malformed += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(RowProblem(line, kind, reason))

    def absorb(self, other: RowReport) -> None:
        """Add the numbers of another file of the same data set."""
        self.rows += other.rows
        self.missing += other.missing
        self.malformed += other.malformed
        self.examples = (self.examples + other.examples)[:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        examples = [{"line": p.line, "kind": p.kind, "reason": p.reason} for p in self.examples]
        counts = {"rows": self.rows, "missing": self.missing, "malformed": self.malformed}
        return {"source": self.source, **counts, "examples": examples}

    def __str__(self) -> str:
        if not self.bad:
            return f"{self.source}: {self.rows} rows, none left out"
        first = "; ".join(f"line {p.line}: {p.reason}" for p in self.examples)
        more = f"; and {self.bad - len(self.examples)} more" if self.bad > len(self.examples) else ""
        return f"{self.source}: {self.bad} of {self.rows} rows left out ({first}{more})"


class BadValueError(Exception):
    """A value cannot be used; the second argument says whether it is missing or malformed."""

    def __init__(self, reason: str, kind: Literal["missing", "malformed"] = "malformed") -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind


def parse_value(raw: object, wanted: Field) -> str | float | int:
    """One value as its kind demands: text, a finite number, or whole seconds since 1970.

    Raises:
        BadValueError: it is missing or cannot be read as that.
    """
    text = "" if raw is None else str(raw).strip()
    if wanted.kind == "text":
        return text
    if not text or (wanted.kind != "id" and text.lower() in MISSING):
        raise BadValueError(f"no {wanted.role} (column {wanted.column!r} is empty)", "missing")
    if wanted.kind == "id":
        if not text.isprintable() and not _is_text(text):
            raise BadValueError(f"{wanted.role} {text!r:.60} is not valid text in the file's encoding")
        return text
    return _number(text, wanted) if wanted.kind == "number" else _seconds(text, wanted)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _number(text: str, wanted: Field) -> float:
    if "_" in text:
        raise BadValueError(f"{wanted.role} {text[:40]!r} is no number")
    try:
        value = float(text)
    except ValueError:
        raise BadValueError(f"{wanted.role} {text[:40]!r} is no number") from None
    if not abs(value) <= LARGEST:
        raise BadValueError(f"{wanted.role} {text[:40]!r} is not finite, or too large")
    return value


def _seconds(text: str, wanted: Field) -> int:
    try:
        value = int(text) if text.lstrip("-").isdigit() else int(float(text))
    except (ValueError, OverflowError):
        pass
    else:
        if abs(value) >= 1 << 63:
            raise BadValueError(f"{wanted.role} {text[:40]!r} is no time")
        return value // 1000 if wanted.kind == "milliseconds" else value
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadValueError(
            f"{wanted.role} {text[:40]!r} is neither seconds since 1970 nor an ISO date"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


@dataclass(frozen=True)
class Coded:
    """A text column: `ids[index]` are its values; `index` [N] int64."""

    ids: Sequence[str]
    index: IntArray


Column = Coded | NDArray[np.float64] | IntArray
Piece = Mapping[str, Column]


def piece_of_rows(
    fields: Sequence[Field], rows: Iterable[tuple[int, Sequence[object] | BadValueError]], report: RowReport
) -> Piece:
    """Columns of raw rows (line, one value per field); unusable rows go to the report with their line."""
    kept: list[list[Any]] = [[] for _ in fields]
    for line, row in rows:
        report.rows += 1
        try:
            if isinstance(row, BadValueError):
                raise row
            values = [parse_value(raw, wanted) for raw, wanted in zip(row, fields, strict=True)]
        except BadValueError as problem:
            report.add(line, problem.kind, problem.reason)
            continue
        for column, value in zip(kept, values, strict=True):
            column.append(value)
    return _piece_of_values(fields, kept)


def _piece_of_values(fields: Sequence[Field], values: Sequence[Sequence[Any]]) -> Piece:
    """Columns of parsed Python values, one sequence per field."""
    out: dict[str, Column] = {}
    for wanted, column in zip(fields, values, strict=True):
        if wanted.kind in TEXTS:
            known: dict[str, int] = {}
            index = [known.setdefault(text, len(known)) for text in column]
            out[wanted.role] = Coded(list(known), np.array(index, dtype=np.int64))
        else:
            values_of: NDArray[Any] = np.array(
                column, dtype=np.float64 if wanted.kind == "number" else np.int64
            )
            out[wanted.role] = values_of
    return out


def join(fields: Sequence[Field], pieces: Iterable[Piece]) -> dict[str, Column]:
    """Pieces one after the other; ids of all pieces in one table."""
    tables: dict[str, dict[str, int]] = {f.role: {} for f in fields if f.kind in TEXTS}
    parts: dict[str, list[NDArray[Any]]] = {f.role: [] for f in fields}
    for piece in pieces:
        for wanted in fields:
            column = piece[wanted.role]
            if isinstance(column, Coded):
                table = tables[wanted.role]
                codes = np.array([table.setdefault(text, len(table)) for text in column.ids], dtype=np.int64)
                parts[wanted.role].append(codes[column.index] if len(codes) else column.index)
            else:
                parts[wanted.role].append(column)
    out: dict[str, Column] = {}
    for wanted in fields:
        kind = np.float64 if wanted.kind == "number" else np.int64
        whole: NDArray[Any] = np.concatenate([np.zeros(0, kind), *parts[wanted.role]])
        out[wanted.role] = Coded(list(tables[wanted.role]), whole) if wanted.kind in TEXTS else whole
    return out


def sorted_ids(ids: Sequence[str]) -> tuple[NDArray[np.str_], IntArray]:
    """Ids sorted (by value where all are plain whole numbers), and the new index of each given one."""
    if ids and all(i.isascii() and i.isdigit() and (i == "0" or i[0] != "0") and len(i) < 19 for i in ids):
        order = np.argsort(np.array([int(i) for i in ids], dtype=np.int64), kind="stable")
    else:
        order = np.argsort(np.array(ids, dtype=np.str_), kind="stable")
    index = np.empty(len(ids), dtype=np.int64)
    index[order] = np.arange(len(ids))
    return np.array(ids, dtype=np.str_)[order], index


def to_interactions(columns: Mapping[str, Column], reader: Reader | None = None) -> Interactions:
    """Interactions of the columns user, item and, where there, rating and timestamp (otherwise 1, row order).

    Args:
        columns: by role.
        reader: makes vectors of the column review; None: what users wrote is left out.

    Raises:
        DataError: there is no row.
    """
    user, item = columns["user"], columns["item"]
    assert isinstance(user, Coded) and isinstance(item, Coded)
    user_ids, user_index = sorted_ids(user.ids)
    item_ids, item_index = sorted_ids(item.ids)
    n = len(user.index)
    if not n:
        raise DataError("no interactions: expected at least one row; check the file")
    users = user_index[user.index]
    stamps = columns.get("timestamp")
    times = np.arange(n, dtype=np.int64) if stamps is None else np.asarray(stamps, dtype=np.int64)
    order = np.argsort(users, kind="stable") if stamps is None else np.lexsort((times, users))
    rating = columns.get("rating")
    value = np.ones(n, np.float32) if rating is None else np.asarray(rating).astype(np.float32)
    review = columns.get("review") if reader else None
    return Interactions(
        users[order],
        item_index[item.index][order],
        value[order],
        times[order],
        user_ids,
        item_ids,
        reader(review.ids)[review.index[order]] if reader and isinstance(review, Coded) else None,
    )
