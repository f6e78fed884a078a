"""Messages of devices as bytes: whatever is dumped loads bit for bit, anything else is one ProtocolError."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Reply, Request
from fedrec.wire import device_messages as wire

DTYPES = st.sampled_from(["?", "<i1", "<i4", "<i8", "<u2", "<f2", "<f4", "<f8"]).map(np.dtype)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./@:-]{0,20}", fullmatch=True)
ARRAY = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
ARRAYS = st.dictionaries(NAMES, ARRAY, max_size=4)
SCALARS = st.one_of(st.text(max_size=20), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(), st.booleans())
META = st.dictionaries(NAMES, SCALARS, max_size=5)
ROUNDS = st.integers(0, 2**31 - 1)


def bits(message: Any) -> tuple[Any, ...]:
    """Everything of a message in a form that compares NaN as equal."""
    arrays = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in message.arrays.items()}
    fields = {name: (type(value), repr(value)) for name, value in message.meta.items()}
    return message.kind, message.round, message.phase, arrays, fields


@given(ARRAYS, META, ROUNDS)
def test_a_message_comes_back_bit_for_bit_and_has_one_form(arrays: Any, meta: Any, number: int) -> None:
    sent = Reply("train", number, "refit", arrays, meta)
    content = wire.dump(sent)
    assert bits(wire.load(content, Reply)) == bits(sent)
    assert wire.dump(wire.load(content, Reply)) == content
    again = Reply("train", number, "refit", dict(reversed(arrays.items())), dict(reversed(meta.items())))
    assert wire.dump(again) == content


@given(ARRAYS, META, st.lists(st.tuples(ARRAYS, META), min_size=1, max_size=4), ROUNDS)
def test_questions_are_split_and_joined_bit_for_bit(shared: Any, fields: Any, own: Any, number: int) -> None:
    big = {"model": np.arange(wire.INLINE_BYTES, dtype=np.float32)}
    requests = {
        f"c/{k}": Request("train", number, "refit", arrays | shared | big, meta | fields)
        for k, (arrays, meta) in enumerate(own)
    }
    common, parts = wire.split(requests)
    assert common and set(parts) == set(requests)
    for node, request in requests.items():
        assert bits(wire.join(common, parts[node], Request)) == bits(request)
    assert all(len(part) < 4 * wire.INLINE_BYTES for part in parts.values())


def test_equal_arrays_of_other_objects_are_common_and_small_ones_inline() -> None:
    model = np.ones(10_000, np.float32)
    requests = {
        str(k): Request("train", 1, arrays={"m": model.copy(), "o": np.array([k])}, meta={"a": 1})
        for k in range(3)
    }
    common, own = wire.split(requests)
    assert len(common) > model.nbytes and max(map(len, own.values())) < 200
    small = {str(k): Request("confirm", 1, arrays={"s": np.arange(5)}) for k in range(3)}
    common, own = wire.split(small)
    assert common == b"" and bits(wire.join(b"", own["1"], Request)) == bits(small["1"])
    assert wire.split({}) == (b"", {})


def test_fields_of_other_types_are_not_common() -> None:
    big = np.zeros(9000, np.float32)
    requests = {"a": Request("train", 1, arrays={"m": big}, meta={"x": 1})}
    requests["b"] = Request("train", 1, arrays={"m": big}, meta={"x": True})
    common, own = wire.split(requests)
    assert (
        wire.join(common, own["a"], Request).meta == {"x": 1}
        and wire.join(common, own["b"], Request).meta["x"] is True
    )


def test_parts_of_two_stages_or_with_one_name_twice_are_refused() -> None:
    a, b = (wire.dump(Request("share", k, arrays={"x": np.arange(3)})) for k in (1, 2))
    for common, own in ((a, b), (a, a)):
        with pytest.raises(ProtocolError, match="expected"):
            wire.join(common, own, Request)
    with pytest.raises(ProtocolError, match="one stage"):
        wire.split({"a": Request("share", 1), "b": Request("share", 2)})


GOOD = wire.dump(Reply("train", 3, "refit", {"a": np.arange(5), "b": np.array(2.0)}, meta={"n": 1, "t": "x"}))


@settings(max_examples=300)
@given(st.data())
def test_a_broken_message_is_a_protocol_error_or_another_good_one(data: st.DataObject) -> None:
    broken = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    content = bytes(broken[: data.draw(st.integers(0, len(broken)))] + data.draw(st.binary(max_size=3)))
    try:
        loaded = wire.load(content, Reply)
    except ProtocolError as error:
        assert "\n" not in str(error)
    else:
        wire.dump(loaded)


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.load(content, Reply)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{}", b"null", b"[" * 5000,
        b'{"kind":"a","round":1,"phase":"p","meta":{},"arrays":[["a","object",[1]]]}',
        b'{"kind":"a","round":1,"phase":"p","meta":{},"arrays":[["a","int8",[-1]]]}',
        b'{"kind":"a","round":1,"phase":"p","meta":{},"arrays":[["a","int8",[1099511627775,1099511627775]]]}',
        b'{"kind":"a","round":1,"phase":"p","meta":{},"arrays":[["a","int8",[0]],["a","int8",[0]]]}',
        b'{"kind":"a","round":1,"phase":"p","meta":{},"arrays":[["a","int8",[true]]]}',
        b'{"kind":"a","kind":"a","round":1,"phase":"p","meta":{},"arrays":[]}',
        b'{"kind":"a","round":1,"phase":"p","meta":{"x":[1]},"arrays":[]}',
        b'{"kind":"a","round":1e3,"phase":"p","meta":{},"arrays":[]}',
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(header: bytes) -> None:
    header += b" " * (-len(header) % 8)
    with pytest.raises(ProtocolError):
        wire.load(b"FDM1" + len(header).to_bytes(4, "little") + header, Reply)


def test_loaded_arrays_cannot_be_written_to() -> None:
    loaded = wire.load(GOOD, Reply).arrays["a"]
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1
