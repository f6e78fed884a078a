"""The message codec: whatever it accepts comes back bit for bit, everything else is one ProtocolError."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Reply, Request
from fedrec.wire.messages import MAX_ARRAYS, decode, encode, wire_bytes

DTYPES = st.sampled_from(["?", "<i1", "<i4", "<i8", "<u2", "<f2", "<f4", "<f8"]).map(np.dtype)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./@:-]{0,20}", fullmatch=True)
ARRAYS = st.dictionaries(
    NAMES, npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)), max_size=4
)
SCALARS = st.one_of(st.text(max_size=20), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(), st.booleans())
META = st.dictionaries(NAMES, SCALARS, max_size=5)


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (isinstance(a, float) and np.isnan(a) and np.isnan(b)))


@settings(max_examples=150, deadline=None)
@given(ARRAYS, META, st.integers(0, 2**31 - 1))
def test_round_trip_keeps_every_bit_type_and_shape(arrays: Any, meta: Any, number: int) -> None:
    sent = Request("train", number, "refit", arrays, meta)
    got = decode(*encode(sent), Request)
    assert (got.kind, got.round, got.phase) == ("train", number, "refit")
    assert set(got.arrays) == set(arrays) and set(got.meta) == set(meta)
    for name, values in arrays.items():
        assert got.arrays[name].dtype == values.dtype and got.arrays[name].shape == values.shape
        assert got.arrays[name].tobytes() == values.tobytes()
    assert all(same(got.meta[name], value) for name, value in meta.items())


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.none(), st.binary(), DTYPES.map(lambda d: np.zeros(2, d))),
        max_size=3,
    ),
    st.dictionaries(
        st.sampled_from(["kind", "round", "phase", "meta.a", "b", "meta."]),
        st.one_of(SCALARS, st.none(), st.lists(st.integers())),
    ),
)
def test_garbage_is_a_protocol_error_or_a_message_that_encodes_again(arrays: Any, header: Any) -> None:
    try:
        reply = decode(arrays, header, Reply)
    except ProtocolError as error:
        assert "expected" in str(error) and "\n" not in str(error)
    else:
        assert encode(reply)[1] == header or any(value != value for value in header.values())


@pytest.mark.parametrize("kind", ["../../etc", "", "Train", "x" * 33, 5, None, "train\n"])
def test_words_that_become_file_names_are_checked(kind: Any) -> None:
    for header in (
        {"kind": kind, "round": 1, "phase": "tuning"},
        {"kind": "train", "round": 1, "phase": kind},
    ):
        with pytest.raises(ProtocolError, match="short word"):
            decode({}, header, Request)


@pytest.mark.parametrize("number", [-1, 2**31, 1.0, True, "1", None])
def test_round_is_a_small_natural_number(number: Any) -> None:
    with pytest.raises(ProtocolError, match="round"):
        decode({}, {"kind": "train", "round": number, "phase": "tuning"}, Request)


@pytest.mark.parametrize(
    "values", [np.array([object()]), np.array(["text"]), np.zeros(1, "c16"), np.zeros((1,) * 9), [1.0], None]
)
def test_only_arrays_of_numbers_travel(values: Any) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        encode(Reply("train", 1, "tuning", {"update": values}))


def test_limits() -> None:
    with pytest.raises(ProtocolError, match="arrays"):
        encode(Reply("train", 1, "tuning", {f"a{k}": np.zeros(1) for k in range(MAX_ARRAYS + 1)}))
    with pytest.raises(ProtocolError, match="characters"):
        encode(Reply("train", 1, "tuning", {}, {"note": "x" * 5000}))
    with pytest.raises(ProtocolError, match="too large"):
        encode(Reply("train", 1, "tuning", {}, {"users": 2**63}))


def test_numpy_scalars_and_big_endian_arrays_are_made_plain() -> None:
    big = np.arange(3, dtype=">f4")
    arrays, header = encode(
        Reply("train", 1, "tuning", {"x": big}, {"users": np.int64(3), "loss": np.float32(0.5)})
    )
    assert arrays["x"].dtype == np.dtype("<f4") and arrays["x"].tolist() == [0.0, 1.0, 2.0]
    assert type(header["meta.users"]) is int and type(header["meta.loss"]) is float


def test_bytes_are_those_of_the_values_and_the_header() -> None:
    empty = wire_bytes(Request("hello", 0))
    assert wire_bytes(Request("hello", 0, arrays={"x": np.zeros((3, 5), np.float32)})) == empty + 60
    assert wire_bytes(Request("hello", 0, meta={"a": 1})) > empty
