"""Attacks on updates, as the specification of The Update Framework names them, against a device with real signatures.

A thief has the online keys for a while, or an attacker sits on the line; the owner has the offline keys.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from fedrec.core.errors import BadContent, BadSignature, Expired, FedrecError, Rollback, UpdateRejected
from fedrec.wire.layout import alias_target, model_target
from fedrec.wire.manifest import MANIFEST_FILE, MAX_VERSION
from fedrec.wire.repository import Lifetimes, Repository
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client import Client, MemoryStore
from fedrec_client.store.trusted_time import MAX_AHEAD_SECONDS
from fedrec_client.testing import DAY, NOW, FakePlatform, FakeService, make_client, small_model


class Setting:
    """A service, a device that has version 1, and its clock."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.service, self.platform, self.store = FakeService(**settings), FakePlatform(), MemoryStore()
        self.folder = folder
        self.service.publish()
        self.client.check_for_update()

    @property
    def client(self) -> Client:
        """As after a restart."""
        return make_client(self.folder, self.service, self.platform, self.store)

    @property
    def metadata(self) -> Path:
        return self.service.repository.folder

    def sign(self, role: str, change: Callable[[Any], None], *signers: Any) -> None:
        """Change the newest metadata of a role in place and sign it anew: what a holder of its key can do."""
        path = max(
            self.metadata.glob(f"*{role}.json"),
            key=lambda p: int("0" + p.name.split(".")[0].strip("t")) if p.name[0].isdigit() else 0,
        )
        metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
        change(metadata.signed)
        metadata.signatures.clear()
        for signer in signers or (self.service.online_keys.of(role),):
            metadata.sign(signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        (self.metadata / name).write_bytes(metadata.to_bytes())


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path / "device")


def refused(setting: Setting, error: type[FedrecError], match: str | None = None) -> None:
    """The update is refused by name, and what was served serves on."""
    before = setting.client.status()
    with pytest.raises(error, match=match) as caught:
        setting.client.check_for_update()
    after = setting.client.status()
    assert "\n" not in str(caught.value)
    assert (after.model_version, after.model_sha256) == (before.model_version, before.model_sha256)


def grow(version: int) -> Callable[[Any], None]:
    def change(signed: Any) -> None:
        signed.version = version

    return change


# A stolen online key


def test_a_thief_fast_forwards_and_the_owner_recovers(setting: Setting) -> None:
    """He signs version 2^53, the device takes it; the root replaces the keys; the owner's next version comes."""
    service = setting.service
    owners = service.keep()
    service.publish(version=MAX_VERSION)
    state = service.repository.state(service.trust)
    for signed in (state.roles["models"], state.snapshot, state.timestamp):
        signed.version = MAX_VERSION - 1  # as if he had signed so often
    service.repository._commit_after(state, {"models": state.roles["models"]}, [], [service.online_keys], NOW)
    info = setting.client.check_for_update()
    assert info is not None and info.version == MAX_VERSION
    assert setting.client.status().metadata["timestamp"] == MAX_VERSION

    service.restore(owners)
    service._manifests.pop(MAX_VERSION)
    service.version = 1
    refused(setting, Rollback)  # the same keys, lower versions
    service.rotate()
    service.publish(small_model(seed=7))
    info = setting.client.check_for_update()
    assert info is not None and info.version == 2
    status = setting.client.status()
    assert status.metadata["root"] == 2 and status.metadata["timestamp"] < 10 and status.model_state == "good"
    service.publish()
    assert setting.client.check_for_update() is not None


def test_what_a_thief_signs_after_the_rotation_is_refused(setting: Setting) -> None:
    service, thief = setting.service, setting.service.online_keys
    service.rotate()
    setting.client.check_for_update()
    for role in ("timestamp", "snapshot", "models"):
        kept = service.keep()
        service.publish()
        with pytest.raises(UpdateRejected):
            setting.sign(role, lambda signed: None, thief.of(role))
            setting.client.check_for_update()
        service.restore(kept)
        service._manifests.pop(max(service._manifests))
        service.version = max(service._manifests)


def test_snapshot_and_timestamp_alone_change_no_model(setting: Setting) -> None:
    """A service that only renews can hide news, and nothing else."""
    service = setting.service
    stolen = {role: service.online_keys.of(role) for role in ("snapshot", "timestamp")}
    own = OnlineKeys({**OnlineKeys.generate().signers, **stolen})
    service.online_keys = own
    with pytest.raises(FedrecError, match="devices would refuse"):
        service.publish(small_model(seed=66))
    state = service.repository.state(service.trust)
    models = state.roles["models"]
    models.version += 1
    service.repository._commit_after(state, {"models": models}, [], [own], NOW, checked=())
    refused(setting, BadSignature)


# Freeze, rollback, mix and match


def test_a_service_that_hides_news_is_noticed_after_a_week(setting: Setting) -> None:
    kept = setting.service.keep()
    setting.service.publish()
    setting.service.replay(kept)
    for days, known in ((1, True), (6, True), (8, False), (89, False), (400, False)):
        setting.platform.clock = NOW + days * DAY
        if known:
            assert setting.client.check_for_update() is None
        else:
            refused(setting, Expired, "hides it")
        assert len(setting.client.recommend(3)) == 3
    assert setting.client.status().model_state == "expired"


def test_a_service_that_renews_keeps_a_model_current(setting: Setting) -> None:
    for days in range(4, 200, 4):
        setting.platform.clock = NOW + days * DAY
        setting.service.renew(setting.platform.clock)
        assert setting.client.check_for_update() is None
    assert setting.client.status().model_state == "good"


def test_older_timestamp_and_older_snapshot_are_refused(setting: Setting) -> None:
    before = {p.name: p.read_bytes() for p in setting.metadata.iterdir()}
    setting.service.publish()
    setting.client.check_for_update()
    (setting.metadata / "timestamp.json").write_bytes(before["timestamp.json"])
    refused(setting, Rollback)
    setting.service.restore(setting.service.keep())
    # A timestamp of a higher version that names an older snapshot: what a thief of one key can try.
    timestamp: Metadata[Timestamp] = Metadata.from_bytes(before["timestamp.json"])
    timestamp.signed.version = 50
    timestamp.sign(setting.service.online_keys.of("timestamp"))
    (setting.metadata / "timestamp.json").write_bytes(timestamp.to_bytes())
    refused(setting, Rollback)


def test_an_older_list_of_models_under_a_newer_snapshot_is_refused(setting: Setting) -> None:
    old = setting.service.repository.state(setting.service.trust).roles["models"].version
    setting.service.publish()
    setting.client.check_for_update()
    state = setting.service.repository.state(setting.service.trust)
    older = (setting.metadata / f"{old}.models.json").read_bytes()
    state.snapshot.meta["models.json"].version = old
    state.snapshot.meta["models.json"].length = len(older)
    state.snapshot.meta["models.json"].hashes = None
    setting.service.repository._commit_after(state, {}, [], [setting.service.online_keys], NOW)
    refused(setting, Rollback)


def test_parts_of_two_states_do_not_mix(setting: Setting) -> None:
    """The list of models of one state under the snapshot of another, each signed."""
    setting.service.publish()
    state = setting.service.repository.state(setting.service.trust)
    version = state.roles["models"].version
    older = (setting.metadata / f"{version - 1}.models.json").read_bytes()
    (setting.metadata / f"{version}.models.json").write_bytes(older)
    refused(setting, BadContent)


def test_a_snapshot_that_drops_a_role_is_refused(setting: Setting) -> None:
    state = setting.service.repository.state(setting.service.trust)
    del state.snapshot.meta["tasks.json"]
    setting.service.repository._commit_after(state, {}, [], [setting.service.online_keys], NOW)
    refused(setting, UpdateRejected)


def test_two_different_models_under_one_version_are_seen_in_the_status(tmp_path: Path) -> None:
    """Who holds the online keys can sign two; each is genuine, so nothing refuses it: the hashes tell them apart."""
    keys = (OfflineKeys.generate(), OnlineKeys.generate())
    one, two = FakeService(keys=keys), FakeService(keys=keys)
    two.trust = one.trust
    (two.repository.folder / "1.root.json").write_bytes(one.trust)
    one.publish(small_model(seed=1))
    two.publish(small_model(seed=2))
    a, b = make_client(tmp_path / "a", one), make_client(tmp_path / "b", two)
    a.check_for_update(), b.check_for_update()
    assert a.status().model_version == b.status().model_version == 1
    assert a.status().metadata == b.status().metadata
    assert len(a.status().model_sha256) == 64 and a.status().model_sha256 != b.status().model_sha256
    same = make_client(tmp_path / "c", one)
    same.check_for_update()
    assert same.status().model_sha256 == a.status().model_sha256


# Expiry, and clocks


@pytest.mark.parametrize("role", ["offline", "models", "snapshot", "timestamp"])
def test_each_role_expires(tmp_path: Path, role: str) -> None:
    setting = Setting(tmp_path, lifetimes=Lifetimes(**{role: 5.0}))
    setting.service.publish()
    setting.platform.clock = NOW + 5.5 * DAY
    refused(setting, Expired)
    setting.platform.clock = NOW + 4 * DAY
    setting.store = MemoryStore()
    assert setting.client.check_for_update() is not None


def test_a_clock_that_is_put_back_revives_nothing(setting: Setting) -> None:
    client = setting.client
    withheld = setting.service.keep()
    setting.service.publish()
    setting.platform.clock = NOW + 100 * DAY
    refused(setting, Expired)
    assert client.status().model_state == "expired"
    setting.platform.clock = NOW + 10
    assert setting.client.status().model_state == "expired"  # also after a restart
    refused(setting, Expired)
    setting.service.replay(withheld)
    refused(setting, Expired)
    setting.service.replay(None)
    setting.platform.clock = NOW + 101 * DAY
    setting.service.sign(NOW + 101 * DAY)
    assert setting.client.check_for_update() is not None
    assert setting.client.status().model_state == "good"


def test_an_update_that_a_wrong_clock_refused_comes_with_the_next_signature(setting: Setting) -> None:
    """Ten years ahead, asked there for an update, and right again: nothing but the next signature is waited for."""
    client = setting.client
    for clock in (NOW + 3650 * DAY, NOW + DAY):
        setting.platform.clock = clock
        with pytest.raises(Expired):
            client.check_for_update()
        assert client.status().model_state == "expired"
    setting.platform.clock = NOW + 4 * DAY
    assert setting.service.renew(setting.platform.clock)  # as a service does by itself
    assert setting.client.check_for_update() is None and setting.client.status().model_state == "good"


def test_time_passes_while_a_service_hides_what_is_new(setting: Setting) -> None:
    """An app that is never closed: what it saw expire stays so under a clock that is put back."""
    client = setting.client
    setting.platform.pass_time(8 * DAY)
    for clock in (setting.platform.clock, NOW + DAY, NOW - 1000 * DAY):
        setting.platform.clock = clock
        with pytest.raises(Expired):
            client.check_for_update()


def test_a_clock_before_the_newest_signature_does_not_count(setting: Setting) -> None:
    setting.platform.clock = NOW + 50 * DAY
    setting.service.publish(clock=NOW + 50 * DAY)
    setting.client.check_for_update()
    setting.platform.clock = 0.0
    setting.service.publish(clock=NOW + 1 * DAY)  # expired on the day 50
    refused(setting, Expired)


def test_a_clock_that_was_ahead_once_costs_a_bounded_time(tmp_path: Path) -> None:
    setting = Setting(tmp_path, lifetimes=Lifetimes(offline=1000))
    setting.platform.clock = NOW + 3650 * DAY
    assert setting.client.status().model_state == "expired"
    setting.platform.clock = NOW + DAY
    setting.service.publish(clock=NOW + DAY)
    assert setting.client.check_for_update() is not None and setting.client.status().model_state == "good"
    for _ in range(60):
        setting.platform.clock = NOW + 3650 * DAY
        assert setting.client.status().model_state == "expired"
    soon = NOW + DAY + MAX_AHEAD_SECONDS
    setting.platform.clock = soon
    setting.service.publish(clock=soon)
    assert setting.client.check_for_update() is not None and setting.client.status().model_state == "good"


# Keys: roots, thresholds


def test_devices_follow_from_root_to_root(setting: Setting) -> None:
    """An app that pins the first root meets a repository whose keys were all replaced, several times."""
    service = setting.service
    for offline in (True, False, True):
        service.rotate(online=OnlineKeys.generate(), offline=OfflineKeys.generate() if offline else None)
    service.publish()
    assert setting.client.check_for_update() is not None
    assert setting.client.status().metadata["root"] == 4
    fresh = make_client(setting.folder.with_name("fresh"), service)
    assert fresh.check_for_update() is not None and fresh.status().metadata["root"] == 4


@pytest.mark.parametrize(
    "attack",
    [
        "by a stranger",
        "by the new keys alone",
        "by the old keys alone",
        "skips a version",
    ],
)
def test_a_root_that_the_one_before_does_not_stand_for_is_refused(setting: Setting, attack: str) -> None:
    service = setting.service
    old, new = service.offline_keys, OfflineKeys.generate()
    service.rotate(offline=new)
    path = setting.metadata / "2.root.json"
    metadata: Metadata[Root] = Metadata.from_bytes(path.read_bytes())
    if attack == "skips a version":
        metadata.signed.version = 3
    signers = {
        "by a stranger": OfflineKeys.generate().root,
        "by the new keys alone": new.root,
        "by the old keys alone": old.root,
        "skips a version": (*old.root, *new.root),
    }[attack]
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())
    refused(setting, UpdateRejected)


def test_fewer_root_keys_than_the_threshold_sign_nothing(tmp_path: Path) -> None:
    offline, online = OfflineKeys.generate(3), OnlineKeys.generate()
    repository = Repository(tmp_path / "metadata", "test")
    trust = repository.create(offline, online, NOW, threshold=2)
    service = FakeService(keys=(offline, online))
    service.repository, service.trust = repository, trust
    service.publish()
    client = make_client(tmp_path / "device", service)
    client.check_for_update()
    one = OfflineKeys(offline.root[:1], offline.targets)
    with pytest.raises(FedrecError, match="not the root keys in force"):
        repository.replace_keys(trust, (one, online), (one, online), NOW)
    two = OfflineKeys(offline.root[1:], offline.targets)
    assert repository.replace_keys(trust, (two, online), (two, online), NOW) == 2
    role = repository.state(trust).root.roles["root"]
    assert len(role.keyids) == 3 and role.threshold == 2  # the one who did not come to the ceremony stays
    service.publish()
    assert client.check_for_update() is not None and client.status().metadata["root"] == 2
    path = repository.folder / "3.root.json"
    metadata: Metadata[Root] = Metadata.from_bytes((repository.folder / "2.root.json").read_bytes())
    metadata.signed.version = 3
    metadata.sign(two.root[0])
    path.write_bytes(metadata.to_bytes())
    with pytest.raises(BadSignature):
        client.check_for_update()


def test_a_signature_counts_once(setting: Setting) -> None:
    """A key that is listed twice under two ids still is one key: thresholds count distinct keys."""
    path = setting.metadata / "1.root.json"
    root: Metadata[Root] = Metadata.from_bytes(path.read_bytes())
    root.signed.roles["root"].threshold = 2
    root.sign(setting.service.offline_keys.root[0])
    with pytest.raises(UpdateRejected):
        client = Client.open(
            setting.folder.with_name("x"),
            population="test",
            trust=root.to_bytes(),
            server=setting.service,
            platform=FakePlatform(),
            store=MemoryStore(),
        )
        client.check_for_update()


# Roles and targets


def test_a_role_signs_only_what_was_delegated_to_it(setting: Setting) -> None:
    """The key of tasks signs a champion: devices do not look there for one."""
    service = setting.service
    content = b"{}"
    champion = TargetFile.from_data(alias_target("test", "champion"), content, ["sha256"])
    service.repository.change(service.trust, service.online_keys, NOW, tasks=[champion], models=[])
    assert setting.client.check_for_update() is None
    assert setting.client.status().model_version == 1


@pytest.mark.parametrize("custom", [{}, {"version": -1}, {"version": "1"}, {"version": True}, None])
def test_a_champion_without_a_version_is_refused(setting: Setting, custom: object) -> None:
    service = setting.service
    state = service.repository.state(service.trust)
    entry = state.models[alias_target("test", "champion")]
    entry.unrecognized_fields = {} if custom is None else {"custom": custom}
    service.repository.change(service.trust, service.online_keys, NOW, models=state.models.values())
    refused(setting, BadContent)


def test_an_alias_that_names_another_manifest_is_refused(setting: Setting) -> None:
    service = setting.service
    service.publish()
    state = service.repository.state(service.trust)
    state.models[alias_target("test", "champion")].hashes = state.models[
        model_target("test", 1, MANIFEST_FILE)
    ].hashes
    state.models[alias_target("test", "champion")].hashes = {"sha256": "0" * 64}
    service.repository.change(service.trust, service.online_keys, NOW, models=state.models.values())
    refused(setting, BadContent, "contradicts itself")


def test_accepted_metadata_is_in_the_store_and_nothing_in_the_folder_is_believed(setting: Setting) -> None:
    assert {name for name in setting.store.names("tuf/") if "root" not in name} == {
        *("tuf/timestamp.json", "tuf/snapshot.json", "tuf/targets.json", "tuf/models.json"),
    }
    planted = setting.folder / "models" / ".metadata"
    planted.mkdir()
    (planted / "timestamp.json").write_text("{}")
    stranger = FakeService()
    shutil.copytree(stranger.repository.folder, planted / "root_history")
    setting.service.publish()
    assert setting.client.check_for_update() is not None and not planted.exists()


# The types that are signed are those of the specification.


def test_any_client_of_the_framework_can_read_the_repository(setting: Setting) -> None:
    kinds = {
        "root": Root,
        "timestamp": Timestamp,
        "snapshot": Snapshot,
        "targets": Targets,
        "models": Targets,
    }
    for path in setting.metadata.iterdir():
        signed = Metadata.from_bytes(path.read_bytes()).signed
        role = path.name.removesuffix(".json").rpartition(".")[2]
        assert isinstance(signed, kinds.get(role, Targets)) and signed.spec_version.startswith("1.0.")
