"""Manifests and packages: a device takes what was signed, whole, and nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_helpers import NOW, POPULATION, PRIVACY, factors, items, write

from fedrec.core.errors import (
    BadContent,
    ClientTooOld,
    DataError,
    RegistryError,
    UpdateRejected,
    WrongPopulation,
)
from fedrec.ranking.model import History
from fedrec.wire import package as package_module
from fedrec.wire.manifest import MANIFEST_FILE, FileEntry, Manifest, check_for_device
from fedrec.wire.package import (
    check_package,
    open_package,
    pack_model,
)

ENTRY = {"size": 1, "sha256": "0" * 64}


def scores(model: Any) -> Any:
    return model.scores(model.fold_in(History.of(items(), ["tt00003", "tt00008"])))


def sha256_of(manifest: Manifest) -> str:
    """What metadata would have signed."""
    return FileEntry.of(manifest.to_bytes()).sha256


def test_a_package_gives_the_model_back(tmp_path: Path) -> None:
    made = write(tmp_path / "1")
    opened = open_package(tmp_path / "1", sha256_of(made))
    assert opened.manifest == made
    assert opened.items.ids == items().ids
    assert opened.privacy == PRIVACY
    np.testing.assert_array_equal(scores(opened.model), scores(factors()))


@pytest.mark.parametrize("name", ["model.safetensors", "items.safetensors", "privacy.json", MANIFEST_FILE])
def test_changed_cut_and_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    signed = sha256_of(write(tmp_path / "1"))
    path, good = tmp_path / "1" / name, (tmp_path / "1" / name).read_bytes()
    for place in range(0, len(good), max(1, len(good) // 25)):
        broken = bytearray(good)
        broken[place] ^= 4
        for content in (bytes(broken), good[:place]):
            path.write_bytes(content)
            with pytest.raises(BadContent):
                open_package(tmp_path / "1", signed)
    path.unlink()
    with pytest.raises(BadContent, match="cannot be read"):
        open_package(tmp_path / "1", signed)


def test_a_tensor_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    """Even where someone signs the file's own hash: tensors have their own."""
    manifest = write(tmp_path / "1")
    other = pack_model(factors(seed=5), items(), PRIVACY)
    payload = manifest.payload()
    for name, content in other.items():
        payload["files"][name] = vars(package_module.FileEntry.of(content))
    with pytest.raises(BadContent, match="tensors"):
        check_package(Manifest.from_payload(payload), other)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, None),
        ({"version": 4}, BadContent),
        ({"population": "books"}, WrongPopulation),
        ({"client_version": "0.0.9"}, ClientTooOld),
        ({"client_version": "0.1"}, None),
        ({"client_version": "1"}, None),
        ({"client_version": "0.1.0rc1"}, None),
        ({"client_version": "0.1.1+local"}, None),
        ({"client_version": "unknown"}, ClientTooOld),
    ],
)
def test_the_device_takes_only_what_is_for_it(
    tmp_path: Path, change: dict[str, Any], error: type[UpdateRejected] | None
) -> None:
    manifest = write(tmp_path / "3", 3)
    wanted = {"population": POPULATION, "version": 3, "client_version": "0.1.0"} | change
    if error is None:
        check_for_device(manifest, **wanted)
        return
    with pytest.raises(error) as caught:
        check_for_device(manifest, **wanted)
    assert type(caught.value) is error and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": 1.0},
        {"version": True},
        {"version": 1 << 60},
        {"n_items": -1},
        {"population": "No Spaces"},
        {"min_client_version": "latest"},
        {"files": {}},
        {"files": {"../../etc/passwd": ENTRY}},
        {"files": {"manifest.json": ENTRY}},
        {"files": {"delta-1.bin": ENTRY}},
        {"tensors": {"x": {"dtype": "<f4", "shape": [1], "sha256": "0" * 64}}},
        {"tensors": {"model/x": {"dtype": None, "shape": [1], "sha256": "0" * 64}}},
        {"tensors": {"model/x": {"dtype": "(,)f4", "shape": [1], "sha256": "0" * 64}}},
        {"tensors": {"model/x": {"dtype": "<f4", "shape": [1 << 28], "sha256": "0" * 64}}},
        {"tensors": {"model/x": {"dtype": "|O", "shape": [1], "sha256": "0" * 64}}},
        {"tensors": {"model/x": {"dtype": "<f4", "shape": [1 << 40, 9], "sha256": "0" * 64}}},
        {"tensors": {"model/x": {"dtype": "<f4", "shape": [-1], "sha256": "0" * 64}}},
        {"deltas": {"x": ENTRY}},
        {"deltas": {"1": {"size": -1, "sha256": "0" * 64}}},
        {"privacy": "none"},
        {"deltas": {"9": ENTRY}},
        {"deltas": {" 2": ENTRY}},
        {"deltas": {"3": ENTRY}},
        {"expires": NOW},
        {"surprise": 1},
    ],
)
def test_a_signed_manifest_is_still_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    payload = write(tmp_path / "3", 3).payload()
    assert Manifest.from_payload(json.loads(json.dumps(payload))).payload() == payload
    files = change.get("files")
    more = {"files": payload["files"] | files} if files else change
    with pytest.raises(BadContent):
        Manifest.from_payload(payload | more)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*Manifest.__dataclass_fields__, "kind", "other"]), json_values, max_size=14
    )
)
def test_any_json_is_a_manifest_or_bad_content(payload: dict[str, Any]) -> None:
    with pytest.raises(BadContent):
        Manifest.from_payload(payload)


def test_a_statement_that_is_none_is_refused(tmp_path: Path) -> None:
    files = pack_model(factors(), items(), PRIVACY) | {"privacy.json": b"[]"}
    made = package_module.write_package(tmp_path / "1", files, POPULATION, package_module.Terms(1, NOW))
    with pytest.raises(BadContent, match="not a valid statement"):
        open_package(tmp_path / "1", sha256_of(made))


def test_a_version_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path / "1")
    with pytest.raises(RegistryError, match="never written over"):
        write(tmp_path / "1", seed=2)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_module.os, "fsync", full)
    with pytest.raises(RegistryError, match="No space left"):
        write(tmp_path / "1")
    assert list(tmp_path.iterdir()) == []


def test_items_of_another_number_are_refused() -> None:
    with pytest.raises(DataError, match="items"):
        pack_model(factors(n=30), items(), PRIVACY)


def test_a_manifest_that_was_not_signed_is_refused(tmp_path: Path) -> None:
    """One of the right form, for the same files."""
    made = write(tmp_path / "1")
    other = Manifest.from_payload(made.payload() | {"created": NOW + 1})
    (tmp_path / "1" / MANIFEST_FILE).write_bytes(other.to_bytes())
    with pytest.raises(BadContent, match="not the one that was signed"):
        open_package(tmp_path / "1", sha256_of(made))


def test_folders_made_while_others_are_made() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version in (1, 2, 3):
            write(folder / str(version), version, seed=version)
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
