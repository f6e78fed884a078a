"""Files between a site and its operator: what is written is read, and nothing else passes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.core.errors import RunError
from fedrec.wire.site_files import SiteEnrolment, SitePackage

CURVE = b"ecdsa-sha2-nistp384"
BLOB = len(CURVE).to_bytes(4, "big") + CURVE + bytes(100)
KEY = f"{CURVE.decode()} {base64.b64encode(BLOB).decode()}"
ENROLMENT = SiteEnrolment("berlin-1", KEY, "ab" * 32, 120)
NODE = {"model": {}, "settings": {}, "evaluation": {}, "privacy": None, "aggregation": {}}
CA = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
PACKAGE = SitePackage("berlin-1", "fed.example.org:9092", CA, "a1b2", NODE, ("tea", "milk"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.mark.parametrize(("kind", "made"), [(SiteEnrolment, ENROLMENT), (SitePackage, PACKAGE)])
def test_what_was_written_is_read(tmp_path: Path, kind: Any, made: Any) -> None:
    made.write(tmp_path / "file")
    assert kind.read(tmp_path / "file") == made
    text = (tmp_path / "file").read_text()
    assert "PRIVATE" not in text and "secret" not in text


@QUICK
@given(st.sampled_from([(SiteEnrolment, ENROLMENT), (SitePackage, PACKAGE)]), st.data(), VALUES)
def test_one_wrong_value_is_one_line(
    tmp_path: Path, made: tuple[Any, Any], data: st.DataObject, value: object
) -> None:
    kind, right = made
    right.write(tmp_path / "file")
    plain = json.loads((tmp_path / "file").read_text())
    name = data.draw(st.sampled_from(sorted(plain)))
    (tmp_path / "file").write_text(json.dumps(plain | {name: value}))
    try:
        found = kind.read(tmp_path / "file")
    except RunError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert getattr(found, name, 1) == (tuple(value) if isinstance(value, list) else value)


@QUICK
@given(st.binary(max_size=200))
def test_bytes_that_are_no_such_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for kind in (SiteEnrolment, SitePackage):
        with pytest.raises(RunError):
            kind.read(tmp_path / "file")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../up"},
        {"name": "Berlin"},
        {"users": 0},
        {"users": True},
        {"users": 10**7},
        {"identity": "AB" * 32},
        {"node_key": KEY.replace("384", "256")},
        {"node_key": f"{KEY}\n{KEY}"},
        {"node_key": "ecdsa-sha2-nistp384 ???"},
        {"more": 1},
    ],
)
def test_an_enrolment_that_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    ENROLMENT.write(tmp_path / "file")
    plain = json.loads((tmp_path / "file").read_text()) | changes
    (tmp_path / "file").write_text(json.dumps(plain))
    with pytest.raises(RunError):
        SiteEnrolment.read(tmp_path / "file")


@pytest.mark.parametrize("address", ["", "host", "host:0", "host:65536", "host:x", "a b:1", "host:1/x", ":1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(RunError, match="expected host:port"):
        SitePackage("a", address, CA, "a1", NODE, ("tea",))


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(" " * 5000)
    with pytest.raises(RunError, match="more than 4096 bytes"):
        SiteEnrolment.read(tmp_path / "file")
