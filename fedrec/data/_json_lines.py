"""Read JSON lines (one object per line), fast where a block is perfect, line by line where not.

Out of scope: nested values; a field must be a key of the object itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from fedrec.data._arrow import arrow_type, piece_of_table, pyarrow_or_none
from fedrec.data.delimited import BLOCK_BYTES, BOM, ByteStream, blocks
from fedrec.data.rows import BadValueError, Field, Piece, RowReport, piece_of_rows


def json_pieces(stream: ByteStream, fields: Sequence[Field], report: RowReport) -> Iterator[Piece]:
    """The fields of every object; unusable lines go to the report."""
    for first_line, block in blocks(stream, quoted=False, first_line=1, size=BLOCK_BYTES):
        block = block.removeprefix(BOM) if first_line == 1 else block
        fast = _fast(block, fields)
        if fast is not None:
            piece, rows = fast
            report.rows += rows
            yield piece
        else:
            yield piece_of_rows(fields, _objects(block, first_line, fields), report)


def keys_of(head: bytes) -> list[str]:
    """The keys that occur in the first objects of a file; none where no line is an object."""
    keys: dict[str, None] = {}
    for line in head.removeprefix(BOM).splitlines()[:100]:
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
    return list(keys)


def _objects(
    block: bytes, first_line: int, fields: Sequence[Field]
) -> Iterator[tuple[int, Sequence[object] | BadValueError]]:
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if line.strip():
            yield number, _values(line, fields)


def _values(line: bytes, fields: Sequence[Field]) -> list[object] | BadValueError:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return BadValueError("not a JSON object")
    if not isinstance(value, dict):
        return BadValueError("not a JSON object")
    row = [value.get(str(f.column)) for f in fields]
    for wanted, raw in zip(fields, row, strict=True):
        if isinstance(raw, bool | list | dict):
            return BadValueError(f"{wanted.role} is {type(raw).__name__}, expected text or a number")
    return row


def _fast(block: bytes, fields: Sequence[Field]) -> tuple[Piece, int] | None:
    pa = pyarrow_or_none()
    if pa is None or not block.strip():
        return None
    schema = pa.schema([(str(f.column), arrow_type(pa, f)) for f in fields])
    try:
        table = pa.json.read_json(
            pa.BufferReader(block),
            pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if len(set(schema.names)) != len(schema.names):
        return None
    piece = piece_of_table(pa, table.select(schema.names), fields)
    return None if piece is None else (piece, table.num_rows)
