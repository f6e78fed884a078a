"""Interactions from any table: CSV, TSV, `::`-separated text, JSON lines or Parquet, plain or gzipped.

The caller says which column is what; everything else is found out. Rows that cannot be used are left out,
counted and named by their line. Nothing is half-loaded: a wrong column, an empty file or a file without one good
row is an error. Out of scope: known data sets (`fedrec.data.loaders`), removing readable rows (`cleaning`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from fedrec.core.errors import DataError
from fedrec.core.interactions import Interactions
from fedrec.data._json_lines import json_pieces, keys_of
from fedrec.data._parquet import ParquetTable
from fedrec.data.delimited import (
    BLOCK_BYTES,
    BOM,
    ByteStream,
    Encoding,
    Layout,
    blocks,
    read_block,
    sniff_separator,
    split_lines,
    width_of,
)
from fedrec.data.files import open_bytes
from fedrec.data.rows import Coded, Column, Field, Piece, Reader, RowReport, join, to_interactions

Format = Literal["delimited", "json_lines", "parquet"]
TimestampUnit = Literal["seconds", "milliseconds", "date"]


@dataclass(frozen=True)
class Columns:
    """Which column is what: by name, or by position (from 0) in a file without a header line.

    Attributes:
        user, item: ids of any kind.
        rating: a number; None: every interaction counts 1.
        timestamp: None: the order of the rows is the order in time.
        review: what users wrote; None: nothing, or not of interest.
        timestamp_unit: "seconds" since 1970 (ISO dates are understood, too), "milliseconds", or ISO "date"s.
    """

    user: str | int
    item: str | int
    rating: str | int | None = None
    timestamp: str | int | None = None
    timestamp_unit: TimestampUnit = "seconds"
    review: str | int | None = None

    def fields(self) -> list[Field]:
        """The fields to be read."""
        out = [Field("user", self.user, "id"), Field("item", self.item, "id")]
        if self.rating is not None:
            out.append(Field("rating", self.rating, "number"))
        if self.timestamp is not None:
            out.append(Field("timestamp", self.timestamp, self.timestamp_unit))
        if self.review is not None:
            out.append(Field("review", self.review, "text"))
        return out


def read_interactions(
    path: Path,
    columns: Columns,
    *,
    separator: str | None = None,
    encoding: Encoding = "utf-8",
    format: Format | None = None,
    reader: Reader | None = None,
) -> tuple[Interactions, RowReport]:
    """Interactions of a file, and the report of the rows that were left out.

    Args:
        path: the file; `.gz` is unpacked on the way.
        columns: which column is what.
        separator: between fields; None: found from the first line.
        encoding: of delimited text.
        format: None: `.parquet`, `.json` and `.jsonl` by name, everything else is delimited text.
        reader: makes vectors of what users wrote; None: it is left out.

    Raises:
        DataError: the file is missing, damaged or empty, a column does not exist, or no row can be used.
        EnvironmentProblem: it is Parquet and pyarrow is not installed.
    """
    table, report = read_table(path, columns.fields(), separator=separator, encoding=encoding, format=format)
    return to_interactions(table, reader), report


def column_names(path: Path) -> list[str]:
    """Names of the columns of a file with a header (JSON lines: keys of the first objects).

    Raises:
        DataError: the file is missing, damaged or empty.
    """
    path = Path(path)
    kind = format_of(path.name)
    if not path.is_file():
        raise DataError(f"{path} does not exist: check the path")
    if kind == "parquet":
        return ParquetTable(path, str(path)).names
    with open_bytes(path) as stream:
        if kind == "json_lines":
            return keys_of(stream.read(BLOCK_BYTES // 16) + stream.readline())
        _, first = _first_line(stream)
    if not first:
        raise DataError(f"{path} is empty: expected a header line and rows with data")
    return header_names(first.decode("utf-8", errors="replace"), str(path))[1]


def header_names(line: str, label: str, separator: str | None = None) -> tuple[str, list[str]]:
    """Separator and column names of a header line."""
    line = line.rstrip("\r\n")
    separator = separator or ("," if ".csv" in label and "," in line else sniff_separator(line))
    return separator, [name.strip() for name in next(split_lines(line, separator, len(separator) == 1))[1]]


def read_table(
    path: Path,
    fields: Sequence[Field],
    *,
    separator: str | None = None,
    encoding: Encoding = "utf-8",
    format: Format | None = None,
) -> tuple[dict[str, Column], RowReport]:
    """The given fields of a file as columns by role; see `read_interactions`."""
    path = Path(path)
    if (format or format_of(path.name)) == "parquet":
        if not path.is_file():
            raise DataError(f"{path} does not exist: check the path")
        return collect(fields, _parquet(path, str(path), fields, report := RowReport(str(path))), report)
    with open_bytes(path) as stream:
        return read_stream(
            stream, str(path), fields, format or format_of(path.name), separator=separator, encoding=encoding
        )


def read_stream(
    stream: BinaryIO,
    label: str,
    fields: Sequence[Field],
    format: Format,
    *,
    separator: str | None = None,
    encoding: Encoding = "utf-8",
    quoted: bool = True,
) -> tuple[dict[str, Column], RowReport]:
    """As `read_table`, from an open stream of bytes; `label` is how messages call it."""
    report = RowReport(label)
    if format == "parquet":
        return collect(fields, _parquet(stream, label, fields, report), report)
    if format == "json_lines":
        return collect(fields, _json(stream, label, fields, report), report)
    return collect(fields, _delimited(stream, label, fields, report, separator, encoding, quoted), report)


def format_of(name: str) -> Format:
    """The format that a file name promises."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    if suffix in (".parquet", ".pq"):
        return "parquet"
    return "json_lines" if suffix in (".json", ".jsonl", ".ndjson") else "delimited"


def collect(
    fields: Sequence[Field], pieces: Iterator[Piece], report: RowReport
) -> tuple[dict[str, Column], RowReport]:
    """All pieces as one.

    Raises:
        DataError: there is no usable row.
    """
    table = join(fields, pieces)
    first = table[fields[0].role]
    if not len(first.index if isinstance(first, Coded) else first):
        if not report.rows:
            raise DataError(f"{report.source} is empty: expected at least one row with data")
        problem = report.examples[0]
        raise DataError(
            f"{report.source}: none of its {report.rows} rows can be used "
            f"(line {problem.line}: {problem.reason}); check the columns, the separator and the format"
        )
    return table, report


def choose(columns: Sequence[str], wanted: Field, label: str) -> int:
    """Position of a column.

    Raises:
        DataError: it does not exist; the message names the nearest and lists all.
    """
    if isinstance(wanted.column, int):
        if 0 <= wanted.column < len(columns):
            return wanted.column
        raise DataError(
            f"{label} has {len(columns)} columns: there is no column {wanted.column} for the {wanted.role} "
            "(positions count from 0; check the separator)"
        )
    if wanted.column in columns:
        return columns.index(wanted.column)
    folded = {name.casefold(): name for name in columns}
    near = difflib.get_close_matches(wanted.column.casefold(), list(folded), n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    raise DataError(
        f"{label} has no column {wanted.column!r} for the {wanted.role}: {hint}it has {', '.join(columns)}"
    )


def _parquet(
    source: Path | BinaryIO, label: str, fields: Sequence[Field], report: RowReport
) -> Iterator[Piece]:
    table = ParquetTable(source, label)
    named = [_named(f, table.names[choose(table.names, f, label)]) for f in fields]
    yield from table.pieces(named, report)


def _json(stream: BinaryIO, label: str, fields: Sequence[Field], report: RowReport) -> Iterator[Piece]:
    head = stream.read(BLOCK_BYTES // 16) + stream.readline()
    keys = keys_of(head)
    if keys:
        for wanted in fields:
            choose(keys, wanted, label)
    yield from json_pieces(_Chained(head, stream), fields, report)


def _delimited(
    stream: BinaryIO,
    label: str,
    fields: Sequence[Field],
    report: RowReport,
    separator: str | None,
    encoding: Encoding,
    quoted: bool,
) -> Iterator[Piece]:
    has_header = any(isinstance(f.column, str) for f in fields)
    line, first = _first_line(stream)
    if not first:
        raise DataError(
            f"{label} is empty: expected {'a header line and ' if has_header else ''}rows with data"
        )
    separator, names = header_names(first.decode(encoding, errors="replace"), label, separator)
    quoted = quoted and len(separator) == 1
    if has_header:
        pieces = blocks(stream, quoted, line + 1)
    else:
        pieces = blocks(_Chained(first, stream), quoted, line)
        start = next(pieces)
        names = [""] * width_of(start[1].decode(encoding, errors="replace"), separator, quoted)
        pieces = chain([start], pieces)
    positions = [choose(names, f, label) for f in fields]
    layout = Layout(separator, quoted, len(names))
    for first_line, block in pieces:
        data = block if encoding == "utf-8" else block.decode(encoding).encode()
        try:
            yield read_block(data, first_line, layout, fields, positions, report)
        except DataError as error:
            raise DataError(f"{label}, {error}") from error


def _first_line(stream: BinaryIO) -> tuple[int, bytes]:
    """The first line that is not blank (without a byte order mark), and its number."""
    number = 0
    for line in stream:
        number += 1
        text = line.removeprefix(BOM) if number == 1 else line
        if text.strip():
            return number, text
    return number, b""


def _named(wanted: Field, name: str) -> Field:
    return Field(wanted.role, name, wanted.kind)


class _Chained:
    """Bytes that were already taken from a stream, then the stream."""

    def __init__(self, head: bytes, stream: ByteStream) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head + self._stream.read(size - len(head)) if len(head) < size else head

    def readline(self) -> bytes:
        end = self._head.find(b"\n") + 1
        if end:
            line, self._head = self._head[:end], self._head[end:]
            return line
        line, self._head = self._head, b""
        return line + self._stream.readline()
