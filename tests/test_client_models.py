"""Models on the device: whatever is wrong is refused by name, and the last good one serves on, after restarts too."""

from __future__ import annotations

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

from fedrec.errors import (
    BadContent,
    BadSignature,
    ClientTooOld,
    Expired,
    FedrecError,
    Rollback,
    ServerBusy,
    ServiceError,
    StoreFull,
    WrongPopulation,
)
from fedrec.wire.manifest import ITEMS_FILE, MANIFEST_FILE, MODEL_FILE
from fedrec.wire.package import delta_name
from fedrec_client import Client, MemoryStore
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.testing import DAY, NOW, FakePlatform, FakeService, make_client, small_items, small_model


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


def other_service(service: FakeService, population: str = "test") -> bytes:
    stranger = FakeService(population)
    stranger.publish(version=service.version)
    return (stranger.folder(service.version) / MANIFEST_FILE).read_bytes()


def books(service: FakeService) -> None:
    stranger = FakeService("books")
    stranger.root = service.root
    stranger.key = stranger.new_key(1, NOW)
    stranger.publish(version=2)
    service.publish()
    service.broken[MANIFEST_FILE] = (stranger.folder(2) / MANIFEST_FILE).read_bytes()


def replace_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[FakeService], None]:
    def attack(service: FakeService) -> None:
        service.publish(small_model(seed=9))
        service.broken[name] = change((service.folder(service.version) / name).read_bytes())
        service.broken[delta_name(1)] = b"no delta"

    return attack


def lower(service: FakeService) -> None:
    service.publish()
    service.version = 1


ATTACKS: dict[str, tuple[Callable[[FakeService], object], type[FedrecError]]] = {
    "foreign root": (
        lambda s: (s.publish(), s.broken.update({MANIFEST_FILE: other_service(s)})),
        BadSignature,
    ),
    "another population": (books, WrongPopulation),
    "flipped manifest": (replace_file(MANIFEST_FILE, lambda data: flip(data, 400)), BadSignature),
    "manifest is garbage": (replace_file(MANIFEST_FILE, lambda data: b"<html>"), BadContent),
    "manifest is empty": (replace_file(MANIFEST_FILE, lambda data: b""), BadContent),
    "flipped model": (replace_file(MODEL_FILE, lambda data: flip(data, 900)), BadContent),
    "flipped items": (replace_file(ITEMS_FILE, lambda data: flip(data, 900)), BadContent),
    "longer model": (replace_file(MODEL_FILE, lambda data: b"x" + data), BadContent),
    "shorter model": (replace_file(MODEL_FILE, lambda data: data[:-1]), BadContent),
    "expired": (lambda s: s.publish(clock=NOW - 91 * DAY), Expired),
    "not yet": (lambda s: s.publish(clock=NOW + 3600), Expired),
    "too new for this client": (lambda s: s.publish(min_client_version="9.0"), ClientTooOld),
    "manifest of an older version": (
        lambda s: (s.publish(), s.broken.update({MANIFEST_FILE: (s.folder(1) / MANIFEST_FILE).read_bytes()})),
        Rollback,
    ),
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
    device.service.publish(version=device.service.version + 1)
    assert again.check_for_update() is not None
    assert again.status().model_version == device.service.version


def test_a_replaced_key_is_refused_once_its_successor_was_seen(device: Device) -> None:
    client, old_key = device.start(), device.service.key
    device.service.key = device.service.new_key(2, NOW)
    device.service.publish()
    client.check_for_update()
    device.service.publish(key=old_key)
    with pytest.raises(Rollback, match="serial 1"):
        client.check_for_update()


def test_an_older_version_is_never_taken_again(device: Device) -> None:
    client = device.start()
    device.service.publish()
    client.check_for_update()
    device.service.version = 1
    with pytest.raises(Rollback):
        client.check_for_update()
    shutil.rmtree(device.folder / "models")
    with pytest.raises(Rollback):
        device.start().check_for_update()
    device.service.version = 2
    fresh = device.start()
    assert (
        fresh.status().model_state.startswith("model version 2 is damaged")
        or fresh.status().model_state == "none"
    )
    assert fresh.check_for_update() is not None


def test_older_weights_come_back_under_a_higher_version(device: Device) -> None:
    client = device.start()
    first = client.recommend(8).items
    device.service.publish()
    client.check_for_update()
    device.service.publish(small_model(seed=1), version=3, restores=1)
    assert client.check_for_update() is not None
    assert client.recommend(8).items == first and client.status().model_version == 3


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
    device.service.version = 1
    with pytest.raises(Rollback):
        device.start().check_for_update()


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
    total = sum(
        (device.service.folder(2) / name).stat().st_size for name in (MODEL_FILE, ITEMS_FILE, "privacy.json")
    )
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


def test_a_clock_that_is_put_back_revives_nothing(device: Device) -> None:
    """A manifest that expired before the newest one was signed is refused whatever the clock says."""
    client = device.start()
    device.platform.clock = NOW + 100 * DAY
    device.service.publish(clock=NOW + 100 * DAY)
    client.check_for_update()
    device.platform.clock = NOW
    device.service.publish(clock=NOW)
    with pytest.raises(Expired):
        client.check_for_update()
    assert client.recommend(3).items and client.status().model_state == "good"


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
import fedrec_client.model_updates as module
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.testing import FakePlatform, FakeService, make_client
folder, step = Path(sys.argv[1]), int(sys.argv[2])
service = FakeService()
service.root = type(service.root).load(folder / "root.pem", "pass phrase")
service.key = service.new_key(1, 1_800_000_000)
for _ in range(2):
    service.publish()
if step == 9:
    service.version = 1
store = SqliteStore.open(folder / "device", FileVault(folder / "device"))
client = make_client(folder / "device", service, store=store)
steps = [0]
def die(name, real):
    def call(*args, **kwargs):
        steps[0] += 1
        if steps[0] == step:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    return call
if step != 9:
    for name in ("check_update", "check_package", "place_folder", "sync_folder", "Served"):
        setattr(module, name, die(name, getattr(module, name)))
    module.Models._tidy = die("_tidy", module.Models._tidy)
client.check_for_update()
print(client.status().model_version)
"""


@pytest.mark.slow
def test_killed_at_any_step_one_of_the_two_serves(tmp_path: Path) -> None:
    """kill -9 before each step of an update; afterwards the old or the new model serves, and the update succeeds."""
    service = FakeService()
    service.root.save(tmp_path / "root.pem", "pass phrase")
    (tmp_path / "device").mkdir()
    FileVault.create(tmp_path / "device")

    def run(step: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(step)],
            check=False,
            capture_output=True,
            text=True,
        )

    assert run(9).stdout.strip() == "1"
    keep = tmp_path / "kept"
    shutil.copytree(tmp_path / "device", keep)
    killed = 0
    for step in range(1, 7):
        shutil.rmtree(tmp_path / "device")
        shutil.copytree(keep, tmp_path / "device")
        killed += run(step).returncode == -9
        service.version = 0
        store = SqliteStore.open(tmp_path / "device", FileVault(tmp_path / "device"))
        client = make_client(tmp_path / "device", service, store=store)
        assert client.status().model_version in (1, 2) and client.status().model_state == "good"
        assert len(client.recommend(5)) == 5
        client.close()
        assert run(99).stdout.strip() == "2"
    assert killed == 6


def test_a_full_disk_keeps_the_old_model(device: Device, tmp_path: Path) -> None:
    client = device.start()
    before = client.recommend(5).items
    device.service.publish(small_model(3000, 64), small_items(3000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreFull, match="no room for model version 2"):
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
