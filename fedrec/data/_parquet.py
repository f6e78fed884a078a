"""Read Parquet in batches; rows that cannot be used are named by their number, counted from 1.

Needs the optional dependency pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fedrec.core.errors import DataError, EnvironmentProblem
from fedrec.data._arrow import piece_of_table, pyarrow_or_none
from fedrec.data.rows import Field, Piece, RowReport, piece_of_rows

BATCH_ROWS = 1 << 20


class ParquetTable:
    """An open Parquet file.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        DataError: the file is no Parquet file.
    """

    def __init__(self, source: Path | BinaryIO, label: str) -> None:
        self._pa: Any = pyarrow_or_none()
        if self._pa is None:
            raise EnvironmentProblem(f"{label} is Parquet, which needs pyarrow: pip install 'fedrec[export]'")
        try:
            self._file = self._pa.parquet.ParquetFile(source)
        except (self._pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{label} is no readable Parquet file ({reason}): give a whole one") from error

    @property
    def names(self) -> list[str]:
        """Column names."""
        return list(self._file.schema_arrow.names)

    def pieces(self, fields: Sequence[Field], report: RowReport) -> Iterator[Piece]:
        """The fields of all rows; unusable rows go to the report."""
        names = [str(f.column) for f in fields]
        row = 1
        for batch in self._file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names))):
            columns = [batch.column(name) for name in names]
            table = self._pa.table(columns, [str(k) for k in range(len(names))])
            piece = piece_of_table(self._pa, table, fields)
            if piece is None:
                values = zip(*(_plain(c, f) for c, f in zip(columns, fields, strict=True)), strict=True)
                yield piece_of_rows(fields, enumerate((list(v) for v in values), start=row), report)
            else:
                report.rows += batch.num_rows
                yield piece
            row += batch.num_rows


def _plain(column: Any, wanted: Field) -> list[Any]:
    """Python values of a column; whole numbers that pandas made floats, since some are missing, are ids as well."""
    values: list[Any] = column.to_pylist()
    if wanted.kind != "id":
        return values
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
