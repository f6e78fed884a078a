"""The registry: versions only grow, aliases move in one step, whatever happens in between leaves it whole."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire_helpers import DAY, NOW, POPULATION, PRIVACY, factors, items, keys, round_key

from fedrec.errors import BadContent, RegistryError
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import TASK, RoundKey
from fedrec_server.registry import Aliases, Registry

ROOT, KEY = keys()
TASK_KEY = RoundKey.generate(
    ROOT, POPULATION, serial=1, not_before=NOW - DAY, not_after=NOW + DAY, kinds=(TASK,)
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "models", POPULATION, ROOT.public)


def publish(registry: Registry, seed: int = 0, key: RoundKey = KEY) -> int:
    files = pack_model(factors(seed=seed), items(), PRIVACY)
    return registry.publish(files, Terms(0, NOW, summary=PRIVACY), key).version


def test_versions_only_grow(registry: Registry) -> None:
    assert [publish(registry, seed) for seed in range(3)] == [1, 2, 3] == registry.versions()
    assert registry.manifest(2).version == 2 and registry.manifest(2).privacy == PRIVACY
    assert registry.verify() == {1: "good", 2: "good", 3: "good"}
    assert registry.aliases == Aliases()
    with pytest.raises(RegistryError, match="no model version 9: there are 1, 2, 3"):
        registry.open(9)


def test_promotion_and_the_way_back(registry: Registry) -> None:
    for seed in range(3):
        publish(registry, seed)
    assert registry.promote(1).champion == 1
    assert registry.promote(2, "canary", 100) == Aliases(1, 2, 100)
    assert registry.promote(3) == Aliases(3)
    with pytest.raises(RegistryError, match="rollback 1"):
        registry.promote(1)
    made = registry.rollback(1, NOW + 5, KEY)
    assert (made.version, made.restores) == (4, 1) and registry.aliases == Aliases(4)
    first, again = registry.open(1), registry.open(4)
    assert first.manifest.tensors == again.manifest.tensors and again.manifest.created == NOW + 5
    assert [entry["what"] for entry in registry.history()] == [
        *["publish"] * 3,
        *["promote"] * 3,
        "publish",
        "rollback",
    ]


def test_new_versions_carry_deltas_from_what_is_in_use(registry: Registry) -> None:
    publish(registry)
    registry.promote(1)
    model = factors()
    model.table.values.setflags(write=True)
    model.table.values[3] += 1
    registry.publish(pack_model(model, items(), PRIVACY), Terms(0, NOW), KEY)
    assert set(registry.manifest(2).deltas) == {1}
    (registry.path(2) / "delta-1.bin").write_bytes(b"x")
    assert "delta-1.bin" in registry.verify()[2]


def test_a_canary_goes_to_its_share_and_stays_with_the_same_devices() -> None:
    aliases = Aliases(1, 2, 100)
    tokens = [f"token-{k}" for k in range(5000)]
    chosen = [aliases.version_for(token) for token in tokens]
    assert chosen == [aliases.version_for(token) for token in tokens]
    assert chosen.count(2) / 5000 == pytest.approx(0.1, abs=0.02)
    more = [Aliases(1, 2, 300).version_for(token) for token in tokens]
    assert all(wide == 2 for narrow, wide in zip(chosen, more, strict=True) if narrow == 2)
    assert {Aliases(1, 2, 0).version_for(token) for token in tokens} == {1}
    assert {Aliases(1, 2, 1000).version_for(token) for token in tokens} == {2}


def test_a_damaged_version_is_named_and_not_promoted(registry: Registry) -> None:
    publish(registry)
    publish(registry, 1)
    path = registry.path(2) / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    found = registry.verify()
    assert found[1] == "good" and "model.safetensors" in found[2]
    with pytest.raises(BadContent):
        registry.promote(2)
    with pytest.raises(BadContent):
        registry.rollback(2, NOW, KEY)
    assert registry.versions() == [1, 2] and registry.aliases == Aliases()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda r: publish(r, key=keys()[1]), "devices would refuse it"),
        (lambda r: publish(r, key=round_key(ROOT, "books")), "signs nothing for"),
        (lambda r: r.promote(1, "king"), "expected champion or canary"),
        (lambda r: r.promote(1, "canary", 1001), "expected champion or canary"),
        (lambda r: publish(r, key=round_key(ROOT, start=NOW - 40 * DAY, days=30)), "devices would refuse it"),
        (lambda r: publish(r, key=TASK_KEY), "devices would refuse it"),
        (lambda r: Registry(r.folder.parent, "books"), "no registry of population"),
        (lambda r: Registry(r.folder.parent, "../up"), "small letters"),
        (lambda r: Registry.create(r.folder.parent, POPULATION, bytes(32)), "another key"),
        (lambda r: Registry.create(r.folder.parent, "No Name", bytes(32)), "small letters"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    registry: Registry, attempt: Callable[[Registry], Any], message: str
) -> None:
    publish(registry)
    with pytest.raises(RegistryError, match=message) as caught:
        attempt(registry)
    assert "\n" not in str(caught.value)
    assert registry.aliases == Aliases() and registry.verify() == {1: "good"}


def test_two_writers_do_not_mix(registry: Registry) -> None:
    results: list[object] = []

    def work(seed: int) -> None:
        for _ in range(3):
            try:
                results.append(publish(registry, seed))
            except RegistryError as error:
                assert "somebody else is writing" in str(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == registry.versions() and set(registry.verify().values()) == {"good"}  # type: ignore[type-var]


def test_broken_books_are_said(registry: Registry) -> None:
    (registry.folder / "aliases.json").write_text('{"champion": 1, "queen": 2}')
    with pytest.raises(RegistryError, match=r"aliases\.json cannot be read"):
        _ = registry.aliases
    (registry.folder / "aliases.json").write_text(json.dumps({"champion": 0}))
    assert registry.aliases == Aliases()
    for broken in ('{"champion": "1"}', '{"champion": -1}', '{"canary_traffic": 1001}', "[1]", "{"):
        (registry.folder / "aliases.json").write_text(broken)
        with pytest.raises(RegistryError, match=r"aliases\.json cannot be read"):
            _ = registry.aliases


def test_a_later_round_key_ends_the_earlier_one(registry: Registry) -> None:
    """Devices that saw the later serial would refuse the earlier key."""
    publish(registry)
    publish(registry, 1, key=round_key(ROOT, serial=2))
    with pytest.raises(RegistryError, match="serial 1"):
        publish(registry, 2)
    assert registry.versions() == [1, 2]


def test_numbers_are_not_given_twice(registry: Registry) -> None:
    """A folder that is gone may be on devices."""
    assert [publish(registry, seed) for seed in range(3)] == [1, 2, 3]
    shutil.rmtree(registry.path(3))
    assert publish(registry, 4) == 4
    (registry.folder / "history.jsonl").unlink()
    registry.promote(4)
    (registry.folder / "history.jsonl").unlink()
    shutil.rmtree(registry.path(4))
    assert publish(registry, 5) == 5


def test_aliases_never_go_down(registry: Registry) -> None:
    for seed in range(4):
        publish(registry, seed)
    registry.promote(1)
    registry.promote(3, "canary", 10)
    for version, alias in ((2, "champion"), (2, "canary"), (1, "champion")):
        with pytest.raises(RegistryError, match="rollback"):
            registry.promote(version, alias)
    assert registry.promote(3, "canary", 500) == Aliases(1, 3, 500)
    assert registry.promote(3) == Aliases(3)


def test_verify_sees_what_hashes_of_files_do_not(registry: Registry) -> None:
    for seed in range(3):
        publish(registry, seed)
    registry.promote(2)
    registry.rollback(1, NOW, KEY)
    (registry.path(1) / "extra.html").write_text("x")
    shutil.rmtree(registry.path(4))
    found = registry.verify()
    assert "extra.html" in found[1] and "champion, and not there" in found[4]
    assert (found[2], found[3]) == ("good", "good")
    shutil.copytree(registry.path(2), registry.folder / "7")
    assert registry.verify()[7] == "says it is version 2"
    (registry.path(3) / "manifest.signed").write_bytes(
        (registry.path(3) / "manifest.signed").read_bytes().replace(b"1800000000", b"9" * 400)
    )
    assert "no signed document" in registry.verify()[3]


def test_weights_that_are_said_to_be_earlier_ones_must_be(registry: Registry) -> None:
    publish(registry)
    files = pack_model(factors(seed=1), items(), PRIVACY)
    registry.publish(files, Terms(0, NOW, restores=1), KEY)
    assert registry.verify()[2] == "says it has the weights of 1, and has not"


def test_a_damaged_champion_does_not_stop_the_next_version(registry: Registry) -> None:
    publish(registry)
    registry.promote(1)
    (registry.path(1) / MODEL_FILE).write_bytes(b"x")
    assert publish(registry, 1) == 2 and registry.verify()[2] == "good"
    assert registry.manifest(2).deltas == {}


def test_a_line_that_was_cut_short_is_forgotten_and_one_that_was_not_is_said(registry: Registry) -> None:
    publish(registry)
    path = registry.folder / "history.jsonl"
    with path.open("a") as file:
        file.write('{"what": "promo')
    assert [entry["what"] for entry in registry.history()] == ["publish"]
    registry.promote(1)
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
