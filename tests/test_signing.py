"""Signed documents: what is signed is believed, anything else is refused with a typed error and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_helpers import DAY, NOW, POPULATION, keys, round_key

from fedrec.errors import (
    BadContent,
    BadSignature,
    Expired,
    Rollback,
    RunError,
    UpdateRejected,
    WrongPopulation,
)
from fedrec.wire.signing import MANIFEST, TASK, RootKey, RoundKey, SignedDocument, parse_json, read_public

ROOT, KEY = keys()
DOCUMENT = KEY.sign(MANIFEST, {"version": 3, "text": "ä"}).to_bytes()


def verify(data: bytes, root: bytes = ROOT.public, **changes: Any) -> dict[str, Any]:
    wanted = {"kind": MANIFEST, "population": POPULATION, "now": NOW} | changes
    return SignedDocument.parse(data).verify(root, **wanted)


def test_a_signed_document_is_believed() -> None:
    assert verify(DOCUMENT) == {"kind": MANIFEST, "population": POPULATION, "version": 3, "text": "ä"}
    assert SignedDocument.parse(DOCUMENT).to_bytes() == DOCUMENT


def test_any_changed_bit_is_refused() -> None:
    for place in range(len(DOCUMENT)):
        for bit in (0x01, 0x80):
            broken = bytearray(DOCUMENT)
            broken[place] ^= bit
            with pytest.raises((BadSignature, BadContent)):
                verify(bytes(broken))


@given(st.integers(0, len(DOCUMENT) - 1), st.binary(max_size=40))
def test_cut_and_lengthened_documents_are_refused(end: int, tail: bytes) -> None:
    with pytest.raises(UpdateRejected):
        verify(DOCUMENT[:end] + tail)
    if tail:
        with pytest.raises(UpdateRejected):
            verify(DOCUMENT + tail)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_garbage_is_refused_and_does_nothing_else(data: bytes) -> None:
    for prefix in (b"", b"fedrec document 1\n", DOCUMENT[:200]):
        with pytest.raises(UpdateRejected):
            verify(prefix + data)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"population": "books"}, WrongPopulation),
        ({"kind": TASK}, BadSignature),
        ({"now": NOW - 2 * DAY}, Expired),
        ({"now": NOW + 400 * DAY}, Expired),
        ({"min_serial": 2}, Rollback),
        ({"root": RootKey.generate().public}, BadSignature),
    ],
)
def test_what_is_not_for_this_device_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        verify(DOCUMENT, **change)


def test_a_clock_five_minutes_behind_is_forgiven_and_no_more() -> None:
    start = KEY.delegation.not_before
    verify(DOCUMENT, now=start - 299)
    with pytest.raises(Expired):
        verify(DOCUMENT, now=start - 301)


def test_a_round_key_without_the_roots_word_is_refused() -> None:
    stranger, foreign = keys()
    swapped = SignedDocument(KEY.delegated, *parts(foreign.sign(MANIFEST, {"version": 9})))
    for data in (foreign.sign(MANIFEST, {}).to_bytes(), swapped.to_bytes()):
        with pytest.raises(BadSignature):
            verify(data)
    assert verify(foreign.sign(MANIFEST, {}).to_bytes(), root=stranger.public)


def parts(document: SignedDocument) -> tuple[bytes, bytes]:
    return document.payload, document.signature


def test_a_signature_holds_under_one_delegation_only() -> None:
    """The same round key, delegated twice: a document cannot be moved from the dead delegation to the live one."""
    later = RoundKey(
        KEY._secret,  # the same key on purpose
        ROOT.delegate(KEY.delegation.key, POPULATION, serial=2, not_before=NOW, not_after=NOW + DAY),
    )
    moved = SignedDocument(later.delegated, *parts(KEY.sign(MANIFEST, {"version": 1})))
    with pytest.raises(BadSignature):
        verify(moved.to_bytes())


def test_a_key_for_tasks_signs_no_manifest() -> None:
    narrow = RoundKey.generate(ROOT, POPULATION, serial=1, not_before=NOW, not_after=NOW + DAY, kinds=(TASK,))
    assert verify(narrow.sign(TASK, {}).to_bytes(), kind=TASK)
    with pytest.raises(BadContent, match="delegated"):
        narrow.sign(MANIFEST, {})


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":NaN}',
        '{"a":1e999}',
        "[]",
        "3",
        '"x"',
        "{",
        "[" * 5000,
        '{"a":' * 13 + "1" + "}" * 13,
    ],
)
def test_json_is_read_strictly(text: str) -> None:
    with pytest.raises(BadContent):
        parse_json(text.encode())


def test_lengths_that_lie_cost_no_memory() -> None:
    for length in (2**32 - 1, len(DOCUMENT)):
        with pytest.raises(BadContent):
            SignedDocument.parse(b"fedrec document 1\n" + struct.pack(">I", length) + DOCUMENT[22:])


def test_keys_lie_on_disk_for_their_owner_only(tmp_path: Path) -> None:
    ROOT.save(tmp_path / "root.pem", "correct horse")
    KEY.save(tmp_path / "round.pem")
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    assert b"ENCRYPTED" in (tmp_path / "root.pem").read_bytes()
    assert RootKey.load(tmp_path / "root.pem", "correct horse").public == ROOT.public
    assert verify(RoundKey.load(tmp_path / "round.pem").sign(MANIFEST, {}).to_bytes())
    with pytest.raises(RunError, match="not replaced"):
        ROOT.save(tmp_path / "root.pem", "other")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda folder: RootKey.load(folder / "none.pem", "x"),
        lambda folder: RootKey.load(folder / "root.pem", "wrong"),
        lambda folder: RoundKey.load(folder / "root.pem", "right"),
        lambda folder: read_public(folder / "root.pem"),
        lambda folder: ROOT.delegate(b"short", POPULATION, serial=1, not_before=0, not_after=9),
        lambda folder: ROOT.delegate(bytes(32), POPULATION, serial=1, not_before=9, not_after=9),
        lambda folder: ROOT.delegate(
            bytes(32), POPULATION, serial=1, not_before=0, not_after=9, kinds=("all",)
        ),
    ],
)
def test_wrong_keys_are_one_clear_line(tmp_path: Path, attempt: Callable[[Path], object]) -> None:
    ROOT.save(tmp_path / "root.pem", "right")
    with pytest.raises(RunError) as caught:
        attempt(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_delegation_for_another_key_is_refused() -> None:
    with pytest.raises(BadContent, match="another round key"):
        RoundKey(round_key(ROOT)._secret, KEY.delegated)
