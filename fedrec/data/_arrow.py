"""Columns of Arrow tables, the fast way to read; without pyarrow everything but Parquet still works.

A table that is not perfect (a null, a value that is no number, an empty id) gives None: the caller then reads
these rows once more, one by one, and says which lines are wrong. Out of scope: that careful way
(`rows.piece_of_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.data.rows import LARGEST, Coded, Column, Field, Piece


def pyarrow_or_none() -> Any:
    """The pyarrow module, or None where it is not installed."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow


def arrow_type(pa: Any, wanted: Field) -> Any:
    """The Arrow type that a field of a text file is read as."""
    types = {"id": pa.string(), "text": pa.string(), "number": pa.float64(), "date": pa.timestamp("s")}
    return types.get(wanted.kind, pa.int64())


def piece_of_table(pa: Any, table: Any, fields: Sequence[Field]) -> Piece | None:
    """The columns of a table (in the order of `fields`), or None if any value needs a careful look."""
    out: dict[str, Column] = {}
    for wanted, column in zip(fields, table.columns, strict=True):
        if column.null_count and wanted.kind != "text":
            return None
        try:
            converted = _convert(pa, column, wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
        if converted is None:
            return None
        out[wanted.role] = converted
    return out


def _convert(pa: Any, column: Any, wanted: Field) -> Column | None:
    match wanted.kind:
        case "id":
            coded = _coded(pa, column)
            return coded if all(coded.ids) else None
        case "text":
            return _coded(pa, column.cast(pa.string()).fill_null(""))
    return _numbers(pa, column, wanted)


def _coded(pa: Any, column: Any) -> Coded:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):  # pandas makes floats of whole numbers when some were missing
        column = column.cast(pa.int64())
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
        encoded = encoded if isinstance(encoded, pa.DictionaryArray) else pa.concat_arrays(encoded.chunks)
    ids = [text.strip() for text in encoded.dictionary.cast(pa.string()).to_pylist()]
    return Coded(ids, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _numbers(pa: Any, column: Any, wanted: Field) -> NDArray[np.float64] | NDArray[np.int64] | None:
    if wanted.kind == "number":
        values = np.asarray(column.cast(pa.float64()).to_numpy()).astype(np.float64)
        return values if bool((np.abs(values) <= LARGEST).all()) else None
    if pa.types.is_temporal(column.type):
        stamps = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
        return np.asarray(stamps.to_numpy()).astype(np.int64)
    seconds = np.asarray(column.cast(pa.int64()).to_numpy()).astype(np.int64)
    return seconds // 1000 if wanted.kind == "milliseconds" else seconds
