"""The registry: what is signed is in use, a change counts in one step, whatever happens between leaves it whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire_helpers import DAY, NOW, POPULATION, PRIVACY, factors, items, keys, make_registry

from fedrec.core.errors import BadContent, BadSignature, RegistryError, RunError, UpdateRejected
from fedrec.wire.layout import METADATA_FOLDER
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OnlineKeys
from fedrec_server.registry import Aliases, PublicFiles, Registry, write_bundle

OFFLINE, KEYS = keys()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return make_registry(tmp_path / "models", KEYS, offline=OFFLINE)


def publish(registry: Registry, seed: int = 0, keys: OnlineKeys = KEYS) -> int:
    files = pack_model(factors(seed=seed), items(), PRIVACY)
    return registry.publish(files, Terms(0, NOW, summary=PRIVACY), keys, NOW).version


def test_versions_have_rising_numbers(registry: Registry) -> None:
    assert [publish(registry, seed) for seed in range(3)] == [1, 2, 3] == registry.versions()
    assert registry.manifest(2).version == 2 and registry.manifest(2).privacy == PRIVACY
    assert registry.verify() == {1: "good", 2: "good", 3: "good"}
    assert registry.aliases == Aliases()
    with pytest.raises(RegistryError, match="no model version 9: there are 1, 2, 3"):
        registry.open(9)


def test_promotion_and_the_way_back(registry: Registry) -> None:
    for seed in range(3):
        publish(registry, seed)
    assert registry.promote(1, KEYS, now=NOW).champion == 1
    assert registry.promote(2, KEYS, "canary", 100, NOW) == Aliases(1, 2, 100)
    assert registry.promote(3, KEYS, now=NOW) == Aliases(3)
    before = registry.state().timestamp.version
    assert registry.rollback(1, KEYS, NOW) == Aliases(1) == registry.aliases
    assert registry.state().timestamp.version == before + 1  # newer metadata names an older version
    assert [entry["what"] for entry in registry.history()] == [
        *["publish"] * 3,
        *["promote"] * 3,
        "rollback",
    ]


def test_files_of_what_is_in_use_are_signed_and_lie_under_the_names_that_are_fetched(
    registry: Registry,
) -> None:
    for seed in range(2):
        publish(registry, seed)
    registry.promote(2, KEYS, now=NOW)
    listed = registry.state().models
    assert f"{POPULATION}/models/1/{MODEL_FILE}" not in listed
    files = PublicFiles(registry)
    target = listed[f"{POPULATION}/models/2/{MODEL_FILE}"]
    assert target.custom == {"version": 2}
    hashed = f"targets/{POPULATION}/models/2/{target.hashes['sha256']}.{MODEL_FILE}"
    found = files.find(hashed)
    assert found is not None and hashlib.sha256(found.read_bytes()).hexdigest() == target.hashes["sha256"]
    assert (registry.public / hashed).read_bytes() == found.read_bytes()  # as a web server hands it out
    assert files.find(f"targets/{POPULATION}/models/1/manifest.json") is None
    for path in ("root.json", "history.jsonl", "metadata/../history.jsonl", "metadata/", "targets/x", ""):
        assert files.find(path) is None


def test_new_versions_carry_deltas_from_what_is_in_use(registry: Registry) -> None:
    publish(registry)
    registry.promote(1, KEYS, now=NOW)
    model = factors()
    model.table.values.setflags(write=True)
    model.table.values[3] += 1
    registry.publish(pack_model(model, items(), PRIVACY), Terms(0, NOW), KEYS, NOW)
    assert set(registry.manifest(2).deltas) == {1}
    (registry.path(2) / "delta-1.bin").write_bytes(b"x")
    assert "delta-1.bin" in registry.verify()[2]


def test_a_damaged_version_is_named_and_not_promoted(registry: Registry) -> None:
    publish(registry)
    publish(registry, 1)
    path = registry.path(2) / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    found = registry.verify()
    assert found[1] == "good" and "model.safetensors" in found[2]
    with pytest.raises(BadContent):
        registry.promote(2, KEYS, now=NOW)
    with pytest.raises(BadContent):
        registry.rollback(2, KEYS, NOW)
    assert registry.versions() == [1, 2] and registry.aliases == Aliases()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda r: publish(r, keys=keys()[1]), "devices would refuse"),
        (lambda r: publish(r, keys=OnlineKeys({"models": KEYS.of("models")})), "no key of role 'snapshot'"),
        (lambda r: r.promote(1, keys()[1], now=NOW), "devices would refuse"),
        (lambda r: r.promote(1, KEYS, "king"), "expected champion or canary"),
        (lambda r: r.promote(1, KEYS, "canary", 1001), "expected champion or canary"),
        (lambda r: r.replace_keys(keys(), keys(), now=NOW), "not the root keys in force"),
        (lambda r: r.replace_keys((OFFLINE, KEYS), keys(), threshold=2), "threshold 2 with 1 root keys"),
        (lambda r: Registry(r.folder.parent, "books"), "no registry of population"),
        (lambda r: Registry(r.folder.parent, "../up"), "small letters"),
        (lambda r: Registry.create(r.folder.parent, POPULATION, *keys()), "is a registry already"),
        (lambda r: Registry.create(r.folder.parent, "No Name", *keys()), "small letters"),
        (lambda r: write_bundle(r, r.folder.parent / "start"), "no champion"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    registry: Registry, attempt: Callable[[Registry], Any], message: str
) -> None:
    publish(registry)
    with pytest.raises((RegistryError, RunError), match=message) as caught:
        attempt(registry)
    assert "\n" not in str(caught.value)
    assert registry.aliases == Aliases() and {k: v for k, v in registry.verify().items() if v == "good"} == {
        1: "good"
    }


def test_a_writer_that_is_not_done_is_waited_for_but_not_for_ever(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that renews must not make a publication fail, and a hung one must not hang it."""
    with (registry.folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with monkeypatch.context() as patched:
            patched.setattr("fedrec_server.registry.registry.WAIT_SECONDS", 0.0)
            with pytest.raises(RegistryError, match="another process is writing"):
                publish(registry)
        waiting = threading.Thread(target=publish, args=(registry,))
        waiting.start()
        fcntl.flock(file, fcntl.LOCK_UN)
        waiting.join()
    assert registry.versions() == [1]


def test_two_writers_do_not_mix(registry: Registry) -> None:
    results: list[object] = []

    def work(seed: int) -> None:
        for _ in range(3):
            try:
                results.append(publish(registry, seed))
            except RegistryError as error:
                assert "another process is writing" in str(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == registry.versions() and set(registry.verify().values()) == {"good"}  # type: ignore[type-var]


def test_broken_metadata_is_said_and_nothing_is_signed_on_top_of_it(registry: Registry) -> None:
    publish(registry)
    state, folder = registry.state(), registry.repository.folder
    names = ["timestamp.json", f"{state.snapshot.version}.snapshot.json"]
    names += [f"{signed.version}.{role}.json" for role, signed in state.roles.items()]
    for name in names:
        good = (folder / name).read_bytes()
        for content in (b"", b"garbage", re.sub(rb'"version": ?[0-9]+', b'"version":77', good, count=1)):
            (folder / name).write_bytes(content)
            with pytest.raises(BadSignature, match="does not hold together") as caught:
                publish(registry)
            assert "\n" not in str(caught.value)
        (folder / name).unlink()
        with pytest.raises(RegistryError, match="restore it"):
            registry.verify()
        (folder / name).write_bytes(good)
    assert {v for v in registry.verify().values() if v == "good"} == {"good"}


def test_numbers_are_not_given_twice(registry: Registry) -> None:
    """A folder that is gone may be on devices."""
    assert [publish(registry, seed) for seed in range(3)] == [1, 2, 3]
    shutil.rmtree(registry.path(3))
    assert publish(registry, 4) == 4
    (registry.folder / "history.jsonl").unlink()
    assert publish(registry, 5) == 5


def test_verify_sees_what_hashes_of_files_do_not(registry: Registry) -> None:
    for seed in range(4):
        publish(registry, seed)
    registry.promote(2, KEYS, now=NOW)
    (registry.path(1) / "extra.html").write_text("x")
    shutil.copytree(registry.path(2), registry.packages / "7")
    shutil.rmtree(registry.path(4))
    (registry.path(3) / "manifest.json").write_bytes(
        (registry.path(3) / "manifest.json").read_bytes().replace(b"1800000000", b"1900000000")
    )
    found = registry.verify()
    assert "extra.html" in found[1] and found[2] == "good"
    assert "not the one that was signed" in found[3] and "no model version 4" in found[4]
    assert "is not signed" in found[7]
    with pytest.raises((RegistryError, UpdateRejected)):
        registry.promote(7, KEYS, now=NOW)


def test_metadata_is_renewed_when_half_of_its_life_is_over(registry: Registry) -> None:
    publish(registry)
    assert registry.renew(KEYS, NOW + 3 * DAY) == []
    assert registry.renew(KEYS, NOW + 4 * DAY) == ["timestamp"]
    assert registry.renew(KEYS, NOW + 16 * DAY) == ["snapshot"]
    assert registry.renew(KEYS, NOW + 50 * DAY) == ["models", "tasks"]
    state = registry.state()
    assert state.expires("models") == NOW + 140 * DAY and state.expires("timestamp") == NOW + 57 * DAY
    served = OnlineKeys({role: KEYS.of(role) for role in ("snapshot", "timestamp")})
    assert registry.renew(served, NOW + 100 * DAY) == [
        "snapshot"
    ]  # what a service without the models' key can do
    assert registry.verify() == {1: "good"}
    with pytest.raises(RegistryError, match="devices would refuse"):
        registry.renew(keys()[1], NOW + 200 * DAY)


def test_tasks_are_signed_and_leave_when_their_time_is_over(registry: Registry) -> None:
    content = registry.sign_task("ab" * 8, {"expires": NOW + 60, "rounds": 2}, KEYS, NOW)
    assert json.loads(content) == {
        "expires": NOW + 60,
        "job": "ab" * 8,
        "population": POPULATION,
        "rounds": 2,
    }
    (path,) = registry.state().tasks
    assert path == f"{POPULATION}/tasks/{'ab' * 8}.json"
    assert registry.state().tasks[path].hashes["sha256"] == hashlib.sha256(content).hexdigest()
    registry.sign_task("cd" * 8, {"expires": NOW + 600}, KEYS, NOW + 100)
    assert list(registry.state().tasks) == [f"{POPULATION}/tasks/{'cd' * 8}.json"]


def test_keys_are_replaced_and_the_old_ones_sign_no_more(registry: Registry) -> None:
    publish(registry)
    new = keys()
    assert registry.replace_keys((OFFLINE, KEYS), (OFFLINE, new[1]), now=NOW) == 2
    with pytest.raises(RegistryError, match="devices would refuse"):
        publish(registry)
    assert publish(registry, keys=new[1]) == 3  # the refused one has used up a number
    assert registry.replace_keys((OFFLINE, new[1]), new, now=NOW) == 3
    with pytest.raises(RegistryError, match="not the root keys in force"):
        registry.replace_keys((OFFLINE, new[1]), (OFFLINE, new[1]), now=NOW)
    lost = keys()[1]
    assert registry.replace_keys((new[0], None), (new[0], lost), now=NOW) == 4
    assert publish(registry, 1, lost) == 4
    assert (registry.repository.folder / "4.root.json").exists() and registry.state().root.version == 4


def test_a_bundle_has_what_a_new_app_needs_and_nothing_else(registry: Registry, tmp_path: Path) -> None:
    for seed in range(2):
        publish(registry, seed)
    registry.promote(2, KEYS, now=NOW)
    made = write_bundle(registry, tmp_path / "start")
    assert made.version == 2
    names = {path.name for path in (tmp_path / "start" / METADATA_FOLDER).iterdir()}
    assert {"1.root.json", "timestamp.json"} < names and len(names) == 6
    targets = [p.name for p in (tmp_path / "start" / "targets").rglob("*") if p.is_file()]
    assert {name.partition(".")[2] for name in targets} == {*made.files, "manifest.json"}
    with pytest.raises(RegistryError, match="give a new folder"):
        write_bundle(registry, tmp_path / "start")


def test_a_damaged_champion_does_not_stop_the_next_version(registry: Registry) -> None:
    publish(registry)
    registry.promote(1, KEYS, now=NOW)
    (registry.path(1) / MODEL_FILE).write_bytes(b"x")
    assert publish(registry, 1) == 2 and registry.verify()[2] == "good"
    assert registry.manifest(2).deltas == {}


def test_a_line_that_was_cut_short_is_forgotten_and_one_that_was_not_is_said(registry: Registry) -> None:
    publish(registry)
    path = registry.folder / "history.jsonl"
    with path.open("a") as file:
        file.write('{"what": "promo')
    assert [entry["what"] for entry in registry.history()] == ["publish"]
    registry.promote(1, KEYS, now=NOW)
    assert [entry["what"] for entry in registry.history()] == ["publish", "promote"]
    path.write_text("{]\n" + path.read_text())
    with pytest.raises(RegistryError, match=r"history\.jsonl cannot be read"):
        registry.history()


def test_accounts_without_a_name_have_a_number(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    publish(registry)
    assert registry.history()[0]["by"].startswith("uid ")


def test_a_web_server_of_another_account_can_read_what_is_public(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        registry = make_registry(tmp_path / "models", KEYS)
        registry.promote(publish(registry), KEYS, now=NOW)
    finally:
        os.umask(before)
    public = [path for path in registry.public.rglob("*") if path.is_file()]
    assert len(public) > 8
    for path in (*public, registry.folder / "root.json"):
        assert path.stat().st_mode & 0o777 == 0o644, path
