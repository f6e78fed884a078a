"""Models on the device: whatever is wrong is refused by name, and the last good one serves on, after restarts too."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrec.core.errors import (
    BadContent,
    BadSignature,
    ClientTooOld,
    FedrecError,
    Rollback,
    ServerBusy,
    ServiceError,
    StoreFull,
    UpdateRejected,
    WrongPopulation,
)
from fedrec.wire.manifest import ITEMS_FILE, MANIFEST_FILE, MODEL_FILE
from fedrec.wire.package import delta_name
from fedrec_client import Client, MemoryStore
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.testing import DAY, FakePlatform, FakeService, make_client, small_items, small_model


@pytest.fixture
def service() -> FakeService:
    made = FakeService()
    made.publish()
    return made


class Device:
    """A folder whose client is opened again and again."""

    def __init__(self, folder: Path, service: FakeService) -> None:
        self.folder, self.service = folder, service
        self.platform, self.store = FakePlatform(), MemoryStore()

    def start(self) -> Client:
        return make_client(self.folder, self.service, self.platform, self.store)


@pytest.fixture
def device(tmp_path: Path, service: FakeService) -> Device:
    made = Device(tmp_path / "device", service)
    made.start().check_for_update()
    return made


def flip(content: bytes, place: int) -> bytes:
    broken = bytearray(content)
    broken[place] ^= 1
    return bytes(broken)


def replace_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[FakeService], None]:
    def attack(service: FakeService) -> None:
        service.publish(small_model(seed=9))
        service.broken[name] = change((service.folder(service.version) / name).read_bytes())
        service.broken[delta_name(1)] = b"no delta"

    return attack


def replace_role(role: str, change: Callable[[bytes], bytes]) -> Callable[[FakeService], None]:
    """Metadata of a role as it is changed on its way."""

    def attack(service: FakeService) -> None:
        service.publish(small_model(seed=9))
        name = "timestamp.json"
        if role != "timestamp":
            newest = max(
                int(path.name.split(".")[0]) for path in service.repository.folder.glob(f"*.{role}.json")
            )
            name = f"{newest}.{role}.json"
        service.broken[f"{role}.json"] = change((service.repository.folder / name).read_bytes())

    return attack


def by_a_stranger(service: FakeService) -> None:
    stranger = FakeService("test")
    for _ in range(5):
        stranger.publish(version=2)
    service.publish()
    service.replay(stranger.repository.folder)
    service.kept_alive = stranger  # type: ignore[attr-defined]


def of_another_population(service: FakeService) -> None:
    """All keys are the same: only the population is another."""
    books = FakeService("books", keys=(service.offline_keys, service.online_keys))
    for _ in range(5):
        books.publish()
    service.publish()
    service.replay(books.repository.folder)
    service.kept_alive = books  # type: ignore[attr-defined]


ATTACKS: dict[str, tuple[Callable[[FakeService], object], type[FedrecError]]] = {
    "foreign keys": (by_a_stranger, BadSignature),
    "another population": (of_another_population, WrongPopulation),
    "flipped timestamp": (replace_role("timestamp", lambda data: flip(data, 100)), UpdateRejected),
    "flipped snapshot": (replace_role("snapshot", lambda data: flip(data, 100)), BadContent),
    "flipped list of models": (replace_role("models", lambda data: flip(data, 100)), BadContent),
    "timestamp is garbage": (replace_role("timestamp", lambda data: b"<html>"), BadContent),
    "timestamp is empty": (replace_role("timestamp", lambda data: b""), BadContent),
    "timestamp without an end": (replace_role("timestamp", lambda data: bytes(20_000)), BadContent),
    "snapshot without an end": (replace_role("snapshot", lambda data: data + bytes(10)), BadContent),
    "shorter list of models": (replace_role("models", lambda data: data[:-1]), BadContent),
    "flipped manifest": (replace_file(MANIFEST_FILE, lambda data: flip(data, 100)), BadContent),
    "manifest without an end": (replace_file(MANIFEST_FILE, lambda data: data + bytes(9)), BadContent),
    "flipped model": (replace_file(MODEL_FILE, lambda data: flip(data, 900)), BadContent),
    "flipped items": (replace_file(ITEMS_FILE, lambda data: flip(data, 900)), BadContent),
    "longer model": (replace_file(MODEL_FILE, lambda data: b"x" + data), BadContent),
    "shorter model": (replace_file(MODEL_FILE, lambda data: data[:-1]), BadContent),
    "too new for this client": (lambda s: s.publish(min_client_version="9.0"), ClientTooOld),
    "busy": (lambda s: (s.publish(), setattr(s, "busy", True)), ServerBusy),
    "offline": (lambda s: (s.publish(), setattr(s, "offline", True)), ServiceError),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_wrong_is_refused_and_the_last_good_model_serves(device: Device, name: str) -> None:
    attack, error = ATTACKS[name]
    client = device.start()
    before = client.recommend(8).items
    attack(device.service)
    with pytest.raises(error) as caught:
        client.check_for_update()
    assert "\n" not in str(caught.value)
    assert client.recommend(8).items == before and client.status().model_version == 1
    assert client.status().last_error == str(caught.value)
    again = device.start()
    assert again.recommend(8).items == before and again.status().model_state == "good"
    device.service.offline = device.service.busy = False
    device.service.broken.clear()
    device.service.replay(None)
    device.service.publish()
    assert again.check_for_update() is not None
    assert again.status().model_version == device.service.version


def test_older_metadata_is_never_taken_again(device: Device) -> None:
    client, kept = device.start(), device.service.keep()
    device.service.publish()
    client.check_for_update()
    device.service.replay(kept)
    with pytest.raises(Rollback):
        client.check_for_update()
    shutil.rmtree(device.folder / "models")  # deleting the folder opens no way back
    with pytest.raises(Rollback):
        device.start().check_for_update()
    device.service.replay(None)
    fresh = device.start()
    assert fresh.status().model_state.startswith("model version 2 is damaged") or (
        fresh.status().model_state == "none"
    )
    assert fresh.check_for_update() is not None


def test_a_folder_that_is_put_back_opens_no_way_back(device: Device, tmp_path: Path) -> None:
    client, kept = device.start(), device.service.keep()
    shutil.copytree(device.folder / "models", tmp_path / "models before")
    device.service.publish()
    client.check_for_update()
    shutil.rmtree(device.folder / "models")
    shutil.copytree(tmp_path / "models before", device.folder / "models")
    device.service.replay(kept)
    with pytest.raises(Rollback):
        device.start().check_for_update()


def test_newer_metadata_may_name_an_older_version(device: Device) -> None:
    client = device.start()
    first = client.recommend(8).items
    device.service.publish()
    client.check_for_update()
    device.service.promote(1)
    info = client.check_for_update()
    assert (
        info is not None and info.version == 1 and info.bytes_downloaded == 0
    )  # the one before is still there
    assert client.recommend(8).items == first and client.status().model_version == 1
    for _ in range(2):
        device.service.publish()
        client.check_for_update()
    device.service.promote(1)
    info = client.check_for_update()
    assert info is not None and info.bytes_downloaded > 0 and client.recommend(8).items == first


def test_a_device_draws_for_itself_whether_it_takes_the_canary(tmp_path: Path, service: FakeService) -> None:
    """The share is the signed one, it stays with the same devices, and more traffic takes none back."""
    service.publish(promote=False)
    clients = [make_client(tmp_path / str(k), service) for k in range(60)]
    versions = []
    for traffic in (0, 300, 600, 1000):
        service.promote(2, traffic=traffic)
        for client in clients:
            client.check_for_update()
        versions.append([client.status().model_version for client in clients])
    assert set(versions[0]) == {1} and set(versions[-1]) == {2}
    # A share of 60 draws is off by 5 standard deviations (0.32) once in two million times.
    assert versions[1].count(2) / 60 == pytest.approx(0.3, abs=0.32)
    for fewer, more in itertools.pairwise(versions):
        assert all(b == 2 for a, b in zip(fewer, more, strict=True) if a == 2)
    service.promote(1)
    assert [client.check_for_update() is not None for client in clients] == [True] * 60


def test_a_damaged_model_on_disk_is_noticed_and_the_one_before_serves(device: Device) -> None:
    client = device.start()
    first = client.recommend(5, exclude_seen=False).items
    device.service.publish()
    client.check_for_update()
    path = device.folder / "models" / "2" / MODEL_FILE
    path.write_bytes(flip(path.read_bytes(), 700))
    again = device.start()
    assert again.status().model_version == 1 and "version 2 is damaged" in again.status().model_state
    assert again.recommend(5, exclude_seen=False).items == first
    assert again.check_for_update() is not None and again.status().model_version == 2
    assert device.start().status().model_state == "good"


def test_both_models_damaged(device: Device) -> None:
    device.service.publish()
    device.start().check_for_update()
    for version in (1, 2):
        (device.folder / "models" / str(version) / ITEMS_FILE).write_bytes(b"")
    again = device.start()
    assert again.status().model_version == 0 and len(again.recommend(5)) == 0
    again.log_event("play", item="film-1")  # nothing else is lost
    assert device.start().status().model_version == 0
    assert again.check_for_update() is not None
    assert len(again.recommend(5)) == 5


def test_downloads_go_on_where_they_were_cut(device: Device) -> None:
    items = small_items(400)
    device.service.publish(small_model(400, 64), items)
    size = (device.service.folder(2) / MODEL_FILE).stat().st_size
    device.service.broken[delta_name(1)] = b"no delta"
    device.service.cut_after = size // 3
    client, sent = device.start(), device.service.sent_bytes
    attempts = 0
    while client.status().model_version == 1:
        attempts += 1
        try:
            client.check_for_update()
        except ServiceError as error:
            assert "what came is kept" in str(error)
        client = device.start()
    names = (MANIFEST_FILE, MODEL_FILE, ITEMS_FILE, "privacy.json")
    total = sum((device.service.folder(2) / name).stat().st_size for name in names)
    assert attempts > 3 and device.service.sent_bytes - sent <= total + 8 * attempts
    assert not list((device.folder / "models").glob(".partial/*"))


def test_a_delta_is_enough_where_little_changed(device: Device) -> None:
    items, model = small_items(2000), small_model(2000, 32)
    device.service.publish(model, items)
    client = device.start()
    client.check_for_update()
    changed = small_model(2000, 32)
    changed.table.values.setflags(write=True)  # type: ignore[attr-defined]
    changed.table.values[5] += 1  # type: ignore[attr-defined]
    device.service.publish(changed, items)
    info = client.check_for_update()
    assert info is not None and info.by_delta
    assert info.bytes_downloaded < 0.05 * (device.service.folder(3) / MODEL_FILE).stat().st_size
    assert device.start().status().model_version == 3


def test_a_bad_delta_costs_a_download_and_nothing_else(device: Device) -> None:
    device.service.publish(small_model(seed=1))
    for content in (b"", b"garbage", (device.service.folder(2) / MODEL_FILE).read_bytes()):
        device.service.broken[delta_name(1)] = content
    client = device.start()
    info = client.check_for_update()
    assert info is not None and not info.by_delta


def test_an_expired_model_serves_and_says_so(device: Device) -> None:
    device.platform.pass_time(91 * DAY)
    client = device.start()
    assert client.status().model_state == "expired" and len(client.recommend(5)) == 5
    assert "model" in client.eligible().codes


def test_calls_under_way_finish_with_their_model(device: Device) -> None:
    client = device.start()
    rec = client.recommend(3)
    device.service.publish()
    client.check_for_update()
    with pytest.raises(FedrecError, match="recommend again"):
        client.explain(rec.items[0].item, rec)
    client.log_event(
        "play", item=rec.items[0].item, rec=rec.id
    )  # of the list of another model: kept, not joined
    assert client.privacy_report().events == 1


KILLED = """
import os, sys
from pathlib import Path
import fedrec_client.updates.model_updates as module
import fedrec_client.updates._trusted_metadata as metadata
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.testing import FakePlatform, FakeService, make_client
folder, step = Path(sys.argv[1]), int(sys.argv[2])
service = FakeService(keys=(OfflineKeys.load(folder / "keys", "pass phrase"), OnlineKeys.load(folder / "keys")))
for _ in range(1 if step == 99 else 2):
    service.publish()
store = SqliteStore.open(folder / "device", FileVault(folder / "device"))
client = make_client(folder / "device", service, store=store)
steps = [0]
def die(real):
    def call(*args, **kwargs):
        steps[0] += 1
        if steps[0] == step:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    return call
if step != 99:
    for owner, name in (
        (metadata, "_lay_out"), (metadata, "_keep"), (metadata.TrustedTime, "accept"), (module, "check_for_device"),
        (module, "check_package"), (module, "place_folder"), (module, "sync_folder"), (module, "Served"),
        (module.Models, "_remember"), (module.Models, "_tidy"),
    ):
        setattr(owner, name, die(getattr(owner, name)))
client.check_for_update()
print(client.status().model_version)
"""


@pytest.mark.slow
def test_killed_at_any_step_one_of_the_two_serves(tmp_path: Path) -> None:
    """kill -9 before each step of an update; afterwards the old or the new model serves, and the update succeeds."""
    service = FakeService()
    service.offline_keys.save(tmp_path / "keys", "pass phrase")
    service.online_keys.save(tmp_path / "keys")
    (tmp_path / "device").mkdir()
    FileVault.create(tmp_path / "device")

    def run(step: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(step)],
            check=False,
            capture_output=True,
            text=True,
        )

    assert run(99).stdout.strip() == "1"
    keep = tmp_path / "kept"
    shutil.copytree(tmp_path / "device", keep)
    killed = 0
    for step in range(1, 11):
        shutil.rmtree(tmp_path / "device")
        shutil.copytree(keep, tmp_path / "device")
        killed += run(step).returncode == -9
        store = SqliteStore.open(tmp_path / "device", FileVault(tmp_path / "device"))
        client = make_client(tmp_path / "device", service, store=store)
        assert client.status().model_version in (1, 2) and client.status().model_state == "good"
        assert len(client.recommend(5)) == 5
        client.close()
        assert run(50).stdout.strip() == "2"
    assert killed >= 9


def test_a_full_disk_keeps_the_old_model(device: Device, tmp_path: Path) -> None:
    client = device.start()
    before = client.recommend(5).items
    device.service.publish(small_model(3000, 64), small_items(3000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreFull, match="no room for another model version"):
            client.check_for_update()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, earlier)
    assert client.recommend(5).items == before and device.start().recommend(5).items == before
    assert client.check_for_update() is not None


def test_two_updates_at_once_are_one(device: Device) -> None:
    client = device.start()
    device.service.publish()
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(client.check_for_update())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each is not None for each in results) == 1
    assert json.loads(device.store.get("models") or b"")["current"] == 2
