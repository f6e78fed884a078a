"""Read delimited text (CSV, TSV, `a::b::c`) block by block: fast where a block is perfect, else line by line.

A block ends at the end of a record, so line numbers stay right although hardly any line is looked at alone.
Out of scope: which columns mean what (`tabular`).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedrec.core.errors import DataError
from fedrec.data._arrow import arrow_type, piece_of_table, pyarrow_or_none
from fedrec.data.rows import BadValueError, Field, Piece, RowReport, piece_of_rows

Encoding = Literal["utf-8", "latin-1"]
BLOCK_BYTES = 1 << 24
UNIT = "\x1f"  # stands for separators of several characters, which no CSV reader takes
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Layout:
    """How records are written.

    Attributes:
        separator: between fields; one or several characters.
        quoted: fields may be enclosed in double quotes (never with a separator of several characters).
        width: number of fields of a whole record.
    """

    separator: str
    quoted: bool
    width: int


class ByteStream(Protocol):
    """What is needed of a stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""

    def readline(self) -> bytes:
        """Up to and with the next line break; nothing at the end."""


def blocks(
    stream: ByteStream, quoted: bool, first_line: int, size: int = BLOCK_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Pieces of whole records with the number of their first line."""
    while block := stream.read(size):
        block += stream.readline()
        # An odd number of quotes: the last record goes on behind a line break inside one of its fields.
        while quoted and block.count(b'"') % 2 and (more := stream.readline()):
            block += more
        yield first_line, block
        first_line += block.count(b"\n")


def sniff_separator(line: str) -> str:
    """The separator that a line uses; a comma where there is none."""
    return next((s for s in ("::", "\t", ",", ";", "|") if s in line), ",")


def split_lines(
    text: str, separator: str, quoted: bool, first_line: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of the line they start on; empty lines are no records.

    Raises:
        DataError: a double quote is opened and never closed (what follows would vanish in one field).
    """
    if len(separator) > 1:
        text, separator = text.replace(separator, UNIT), UNIT
    lines = io.StringIO(text, newline="")
    if quoted:
        reader = csv.reader(lines, delimiter=separator, strict=text.count('"') % 2 == 1)
    else:
        reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
    line = first_line
    try:
        for row in reader:
            if row:
                yield line, row
            line = first_line + reader.line_num
    except csv.Error as error:
        raise DataError(
            f"line {line}: {error}; a double quote is probably opened there and never closed"
        ) from error


def width_of(text: str, separator: str, quoted: bool) -> int:
    """The usual number of fields in the first lines of a file without a header."""
    head = "\n".join(text.split("\n", 100)[:100])
    counts = Counter(len(row) for _, row in split_lines(head, separator, quoted))
    return counts.most_common(1)[0][0] if counts else 0


def read_block(
    block: bytes,
    first_line: int,
    layout: Layout,
    fields: Sequence[Field],
    positions: Sequence[int],
    report: RowReport,
) -> Piece:
    """The fields at `positions` of every record of a block; unusable records go to the report."""
    fast = _fast(block, layout, fields, positions)
    if fast is not None:
        piece, rows = fast
        report.rows += rows
        return piece
    text = block.decode("utf-8", errors="surrogateescape")
    return piece_of_rows(fields, _pick(text, first_line, layout, positions), report)


def _pick(
    text: str, first_line: int, layout: Layout, positions: Sequence[int]
) -> Iterator[tuple[int, Sequence[object] | BadValueError]]:
    for line, row in split_lines(text, layout.separator, layout.quoted, first_line):
        if len(row) != layout.width:
            yield line, BadValueError(f"{len(row)} fields where {layout.width} are expected")
        else:
            yield line, [row[p] for p in positions]


def _fast(
    block: bytes, layout: Layout, fields: Sequence[Field], positions: Sequence[int]
) -> tuple[Piece, int] | None:
    pa = pyarrow_or_none()
    if pa is None or not block.strip() or len(set(positions)) != len(positions):
        return None
    if layout.quoted and block.count(b'"') % 2:
        return None
    separator = layout.separator
    if len(separator) > 1:
        block, separator = block.replace(separator.encode(), UNIT.encode()), UNIT
    names = [str(k) for k in range(layout.width)]
    picked = [names[p] for p in positions]
    has_quotes = layout.quoted and b'"' in block
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            pa.csv.ParseOptions(
                delimiter=separator, quote_char='"' if layout.quoted else False, newlines_in_values=has_quotes
            ),
            pa.csv.ConvertOptions(
                include_columns=picked,
                column_types={n: arrow_type(pa, f) for n, f in zip(picked, fields, strict=True)},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    piece = piece_of_table(pa, table, fields)
    return None if piece is None else (piece, table.num_rows)
