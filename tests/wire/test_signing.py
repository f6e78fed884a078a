"""Keys, pinned roots and JSON that is signed: what is wrong is one clear line and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_helpers import NOW, POPULATION, keys

from fedrec.core.errors import BadContent, RunError
from fedrec.wire.layout import ONLINE
from fedrec.wire.pinned_root import check_root, read_root
from fedrec.wire.repository import Repository
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec.wire.strict_json import canonical, parse_json

OFFLINE, KEYS = keys()


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


def test_json_is_written_in_one_form() -> None:
    assert canonical({"b": 1, "a": "ä"}) == b'{"a":"\\u00e4","b":1}' == canonical({"a": "ä", "b": 1})
    for value in (float("nan"), {1, 2}, {"a": object()}):
        with pytest.raises(BadContent):
            canonical(value)


def test_keys_lie_on_disk_for_their_owner_only(tmp_path: Path) -> None:
    OFFLINE.save(tmp_path / "offline", "correct horse")
    KEYS.save(tmp_path / "online")
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    assert {path.stem for path in (tmp_path / "online").iterdir()} == set(ONLINE)
    for path in (tmp_path / "offline").iterdir():
        assert b"ENCRYPTED" in path.read_bytes()
    again = OfflineKeys.load(tmp_path / "offline", "correct horse")
    assert again.root[0].public_key == OFFLINE.root[0].public_key
    assert OnlineKeys.load(tmp_path / "online").of("models").public_key == KEYS.of("models").public_key
    for save in (lambda: OFFLINE.save(tmp_path / "offline", "other"), lambda: KEYS.save(tmp_path / "online")):
        with pytest.raises(RunError, match="not replaced"):
            save()


def test_a_machine_may_have_some_of_the_keys(tmp_path: Path) -> None:
    KEYS.save(tmp_path)
    (tmp_path / "models.pem").unlink()
    served = OnlineKeys.load(tmp_path)
    assert served.of("timestamp").public_key == KEYS.of("timestamp").public_key
    with pytest.raises(RunError, match="no key of role 'models' here"):
        served.of("models")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda folder: OfflineKeys.load(folder / "none", "x"),
        lambda folder: OfflineKeys.load(folder, "wrong"),
        OnlineKeys.load,
        lambda folder: OnlineKeys.load(folder / "strange"),
        lambda folder: OfflineKeys.generate(0),
        lambda folder: OfflineKeys.generate(10),
        lambda folder: read_root(folder / "none.json"),
        lambda folder: read_root(folder / "root.pem"),
        lambda folder: check_root(b'{"signed": {"_type": "targets"}}'),
        lambda folder: check_root(b"x" * 600_000),
        lambda folder: Repository(folder / "new", POPULATION).create(OFFLINE, KEYS, NOW, threshold=2),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path: Path, attempt: Callable[[Path], object]) -> None:
    OFFLINE.save(tmp_path, "right")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "models.pem").write_text("not a key")
    with pytest.raises(RunError) as caught:
        attempt(tmp_path)
    assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_root_or_refused(data: bytes) -> None:
    with pytest.raises(RunError):
        check_root(data)
