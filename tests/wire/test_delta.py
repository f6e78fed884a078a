"""Deltas: from any version to any other, to the very bytes; what is hostile is refused within bounds."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from wire_helpers import NOW, POPULATION, PRIVACY, factors, items, write

from fedrec.core.errors import BadContent
from fedrec.wire import package as package_module
from fedrec.wire._delta import apply_delta, make_delta, tensor_entries
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.package import check_package, delta_name, files_from_delta, pack_model


def test_a_delta_leads_to_the_very_files(tmp_path: Path) -> None:
    write(tmp_path / "1")
    model = factors()
    model.table.values.setflags(write=True)
    model.table.values[7] += 0.5
    files = pack_model(model, items(), PRIVACY)
    manifest = package_module.write_package(
        tmp_path / "2", files, POPULATION, package_module.Terms(2, NOW), {1: tmp_path / "1"}
    )
    delta = (tmp_path / "2" / delta_name(1)).read_bytes()
    assert manifest.deltas[1].size == len(delta) < 0.2 * manifest.files[MODEL_FILE].size
    made = files_from_delta(manifest, delta, tmp_path / "1")
    assert made == {name: files[name] for name in made}
    check_package(manifest, files | made)


def test_a_delta_that_does_not_pay_is_not_made(tmp_path: Path) -> None:
    """Other random weights share nothing with the earlier ones."""
    for version, seed in ((1, 0), (2, 9)):
        files = pack_model(factors(d=300, seed=seed), items(), PRIVACY)
        terms, bases = package_module.Terms(version, NOW), {1: tmp_path / "1"} if version > 1 else {}
        manifest = package_module.write_package(tmp_path / str(version), files, POPULATION, terms, bases)
    assert not manifest.deltas


tensors = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    arrays_of.arrays(
        st.sampled_from([np.dtype("<f4"), np.dtype("i1"), np.dtype("<i8"), np.dtype("u1")]),
        arrays_of.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=6),
    ),
)


@settings(max_examples=150)
@given(tensors, tensors)
def test_deltas_of_any_tensors_lead_from_old_to_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    entries = tensor_entries({"model": new})
    delta = make_delta({"model": old}, {"model": new}, {"model": {"k": 1}})
    made, headers = apply_delta(delta, {"model": old}, entries)
    assert headers == {"model": {"k": 1}}
    for name, values in new.items():
        assert made["model"][name].tobytes() == values.tobytes()
        assert made["model"][name].shape == values.shape


def test_hostile_deltas_are_refused_within_bounds() -> None:
    new = {"model": {"a": np.arange(1000, dtype=np.float32)}}
    entries = tensor_entries(new)
    good = make_delta({}, new, {})
    bomb = zlib.compress(bytes(50_000_000))
    huge = zlib.compress((2**31).to_bytes(4, "big") + b"{}")
    hostile: list[bytes] = [b"", b"x", good[:-1], good[: len(good) // 2], good + b"x", bomb, huge]
    hostile += [zlib.compress(zlib.decompress(good) + b"x"), zlib.compress(b"\0\0\0\1[")]
    for data in hostile:
        with pytest.raises(BadContent):
            apply_delta(data, {}, entries)
    wrong_base = {"model": {"a": np.ones(1000, dtype=np.float32)}}
    with pytest.raises(BadContent, match="does not lead"):
        apply_delta(good, wrong_base, entries)


def with_head(head: bytes, body: bytes = b"") -> bytes:
    return zlib.compress(len(head).to_bytes(4, "big") + head + body)


@pytest.mark.parametrize(
    "head", [b"3", b"null", b"[]", b'{"model": 3}', b"[" * 100_000, b'{"model"', b"\xff"]
)
def test_headers_that_are_none_are_refused(head: bytes) -> None:
    new = {"model": {"a": np.arange(4, dtype=np.float32)}}
    body = zlib.decompress(make_delta({}, new, {}))[4 + len(json.dumps({})) :]
    assert apply_delta(with_head(b"{}", body), {}, tensor_entries(new))[1] == {}
    with pytest.raises(BadContent):
        apply_delta(with_head(head, body), {}, tensor_entries(new))


def test_a_bomb_is_not_unpacked() -> None:
    """A hundred million zeros for a tensor of a thousand numbers."""
    entries = tensor_entries({"model": {"a": np.arange(1000, dtype=np.float32)}})
    bomb = with_head(b"{}", bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(BadContent):
            apply_delta(bomb, {}, entries)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_lead_to_the_tensors_or_are_refused(data: bytes, packed: bool) -> None:
    entries = tensor_entries({"model": {"a": np.arange(5, dtype=np.int32)}})
    with pytest.raises(BadContent):
        apply_delta(zlib.compress(data) if packed else data, {}, entries)


@given(st.data())
def test_a_changed_delta_is_refused_or_leads_to_the_same(data: st.DataObject) -> None:
    """Bits that zlib does not look at may change; the tensors may not."""
    new = {"model": {"a": np.arange(50, dtype=np.float32), "b": np.ones((3, 4), dtype=np.int8)}}
    delta = bytearray(make_delta({}, new, {"model": {}}))
    delta[data.draw(st.integers(0, len(delta) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        made, _ = apply_delta(bytes(delta), {}, tensor_entries(new))
    except BadContent:
        return
    for name, values in new["model"].items():
        np.testing.assert_array_equal(made["model"][name], values)
