"""Reading tables: every format gives the same interactions, with and without pyarrow, and names bad lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import DataError, EnvironmentProblem
from fedrec.data import delimited
from fedrec.data.rows import Field, RowReport
from fedrec.data.tabular import Columns, read_interactions, read_stream

NAMED = Columns("user", "item", "rating", "timestamp")
ROWS = [("10", "b", 4.0, 100), ("9", "a", 2.5, 90), ("10", "a", 1.0, 50), ("9", "c,d", 5.0, 95)]


@pytest.fixture(params=["with pyarrow", "without pyarrow"])
def arrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without pyarrow":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    return request.param == "with pyarrow"


def write_csv(path: Path, rows: list[tuple[object, ...]], separator: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerows([("user", "item", "rating", "timestamp"), *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def check_rows(path: Path, columns: Columns = NAMED) -> None:
    data, report = read_interactions(path, columns)
    assert report.rows == 4 and report.bad == 0
    assert data.user_ids.tolist() == ["9", "10"], "ids that are numbers are sorted by value"
    assert data.item_ids.tolist() == ["a", "b", "c,d"]
    assert data.item[data.user == 1].tolist() == [0, 1], "oldest first"
    assert data.value.tolist() == [2.5, 5.0, 1.0, 4.0]
    assert data.timestamp.tolist() == [90, 95, 50, 100]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_delimited(tmp_path: Path, arrow: bool, name: str) -> None:
    check_rows(write_csv(tmp_path / name, list(ROWS), "\t" if "tsv" in name else ","))


def test_columns_may_come_in_any_order_among_others(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'note,timestamp,item,rating,user\nx,100,b,4,10\n"y\nz",90,a,2.5,9\n,50,a,1,10\nx,95,"c,d",5,9\n'
    )
    check_rows(path)


def test_double_colons_without_header(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text("".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in ROWS))
    check_rows(path, Columns(0, 1, 2, 3))


def test_json_lines(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.jsonl.gz"
    keys = ("user", "item", "rating", "timestamp")
    lines = [json.dumps(dict(zip(keys, row, strict=True)) | {"extra": {"deep": [1]}}) for row in ROWS]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    check_rows(path)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("user", "item", "rating", "timestamp")
    columns = dict(zip(names, zip(*ROWS, strict=True), strict=True))
    pq.write_table(pa.table({n: list(columns[n]) for n in names}), tmp_path / "a.parquet")
    check_rows(tmp_path / "a.parquet")


def test_parquet_names_bad_rows_by_number(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"user": [1, None, 3], "item": ["a", "b", "c"], "rating": [1.0, 2.0, float("nan")]})
    pq.write_table(table, tmp_path / "a.parquet")
    data, report = read_interactions(tmp_path / "a.parquet", Columns("user", "item", "rating"))
    assert len(data) == 1 and [p.line for p in report.examples] == [2, 3] and report.missing == 2


def test_ids_that_pandas_made_floats_stay_ids(tmp_path: Path) -> None:
    """A column of numbers with a gap is one of floats; 7.0 and 7 are one user."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"user": [7.0, None, 11.0], "item": [1, 2, 3], "rating": [1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    data, report = read_interactions(tmp_path / "a.parquet", Columns("user", "item", "rating"))
    assert data.user_ids.tolist() == ["7", "11"] and report.missing == 1


def test_numbers_and_times_that_no_column_can_hold_are_bad_rows(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "user,item,rating,timestamp\n1,a,4,10\n2,b,1e39,11\n3,c,-1e300,12\n4,d,3,99999999999999999999\n"
    )
    data, report = read_interactions(path, NAMED)
    assert data.user_ids.tolist() == ["1"] and report.malformed == 3
    assert [p.line for p in report.examples] == [3, 4, 5]
    assert np.isfinite(data.value).all() and "too large" in str(report) and "is no time" in str(report)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match=r"fedrec\[export\]"):
        read_interactions(tmp_path / "a.parquet", NAMED)


def test_bad_rows_are_counted_and_named(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "user,item,rating,timestamp\n"
        "1,a,4,10\n"
        ",b,4,11\n"
        '2,"two\nlines",3,12\n'
        "3,c,much,13\n"
        "\n"
        "4,d,4\n"
        "5,e,inf,15\n"
        "6,f,5,2001-02-03T04:05:06\n"
        "7,g,,16\n"
        "8,h,4,soon\n"
    )
    data, report = read_interactions(path, NAMED)
    assert data.user_ids.tolist() == ["1", "2", "6"]
    assert (report.rows, report.missing, report.malformed) == (9, 2, 4)
    assert [p.line for p in report.examples] == [3, 6, 8, 9, 11]
    assert "and 1 more" in str(report) and "'much' is no number" in str(report)
    assert data.timestamp[-1] == 981173106
    assert report.as_dict()["examples"][0]["kind"] == "missing"


def test_line_numbers_hold_across_blocks(monkeypatch: pytest.MonkeyPatch, arrow: bool) -> None:
    monkeypatch.setattr(delimited.blocks, "__defaults__", (64,))
    bad = {17, 40, 41}
    lines = [f"u{n % 3},i{n},{'x' if n in bad else 3},{n}" for n in range(2, 60)]
    stream = io.BytesIO(("user,item,rating,timestamp\n" + "\n".join(lines)).encode())
    table, report = read_stream(stream, "a.csv", NAMED.fields(), "delimited")
    assert [p.line for p in report.examples] == sorted(bad)
    assert np.asarray(table["timestamp"]).tolist() == [n for n in range(2, 60) if n not in bad]


def test_milliseconds_dates_and_row_order(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text("u,i,ms,day\n1,b,5999,2005-09-06\n1,a,1000,2005-09-05\n")
    by_ms, _ = read_interactions(path, Columns("u", "i", timestamp="ms", timestamp_unit="milliseconds"))
    by_day, _ = read_interactions(path, Columns("u", "i", timestamp="day", timestamp_unit="date"))
    by_row, _ = read_interactions(path, Columns("u", "i"))
    assert by_ms.timestamp.tolist() == [1, 5]
    assert by_day.timestamp.tolist() == [1125878400, 1125964800]
    assert by_row.item.tolist() == [1, 0] and by_row.value.tolist() == [1, 1]


def test_ids_keep_leading_zeros_and_latin_1(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("user,item\n007,é\n7,é\n".encode("latin-1"))
    data, _ = read_interactions(path, Columns("user", "item"), encoding="latin-1")
    assert data.user_ids.tolist() == ["007", "7"] and data.item_ids.tolist() == ["é"]
    with pytest.raises(DataError, match="not valid text"):
        read_interactions(path, Columns("user", "item"))


def test_byte_order_mark_and_windows_lines(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfuser,item\r\n1,a\r\n2,\r\n")
    data, report = read_interactions(path, Columns("user", "item"))
    assert data.item_ids.tolist() == ["a"] and report.examples[0].line == 3


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", NAMED, "is empty"),
        ("user,item,rating,timestamp\n", NAMED, "is empty"),
        ("user,item\nx\ny\n", Columns("user", "item"), "none of its 2 rows can be used"),
        ("user_id,item\n1,2\n", Columns("userid", "item"), "did you mean 'user_id'.*it has user_id, item"),
        ("1,2\n", Columns(0, 5), "has 2 columns"),
        ('user,item\n0,a\n1,"' + "x\n" * 70000, Columns("user", "item"), "line 3: .*never closed"),
        ('user,item\n0,a\n1,"b\n2,c\n', Columns("user", "item"), "line 3: .*never closed"),
    ],
)
def test_one_clear_message(tmp_path: Path, arrow: bool, content: str, columns: Columns, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(path, columns)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_interactions(tmp_path / "no.csv", NAMED)
    broken = tmp_path / "a.csv.gz"
    broken.write_bytes(gzip.compress(b"user,item\n" + b"1,2\n" * 99999)[:-20])
    with pytest.raises(DataError, match="damaged"):
        read_interactions(broken, Columns("user", "item"))
    (tmp_path / "b.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no readable Parquet"):
        read_interactions(tmp_path / "b.parquet", NAMED)


def test_json_lines_bad_lines_and_columns(tmp_path: Path, arrow: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": 1, "item": "a"}\n{"user": 2,\n{"user": true, "item": "a"}\n{"item": "b"}\n')
    data, report = read_interactions(path, Columns("user", "item"))
    assert len(data) == 1 and [p.line for p in report.examples] == [2, 3, 4]
    with pytest.raises(DataError, match="did you mean 'item'"):
        read_interactions(path, Columns("user", "items"))


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(TEXT, TEXT, st.floats(-1e6, 1e6), st.integers(-(2**40), 2**40)), min_size=1, max_size=20
    )
)
def test_csv_read_fast_and_carefully_is_the_same(rows: list[tuple[str, str, float, int]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("user", "item", "rating", "timestamp"), *rows])
    fields = [Field("user", "user", "id"), *NAMED.fields()[1:]]
    tables = []
    for careful in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if careful:
                patch.setitem(sys.modules, "pyarrow", None)
            stream = io.BytesIO(text.getvalue().encode())
            tables.append(read_stream(stream, "a.csv", fields, "delimited", separator=","))
    (fast, one), (slow, two) = tables
    assert one.rows == two.rows == len(rows) and one.bad == two.bad == 0
    for name in ("user", "item"):
        assert [fast[name].ids[k] for k in fast[name].index] == [slow[name].ids[k] for k in slow[name].index]
    assert np.array_equal(fast["rating"], slow["rating"]) and np.array_equal(
        fast["timestamp"], slow["timestamp"]
    )
    assert np.asarray(fast["timestamp"]).tolist() == [row[3] for row in rows]


def test_report_of_a_clean_file_says_so() -> None:
    assert str(RowReport("f", rows=3)) == "f: 3 rows, none left out"
