"""Files of a device are their owner's from the first byte, follow no link, and on the disk when a call returns."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_helpers import DATABASE, TRUST, contents, opened, told

from fedrec.core.errors import DataError, RunError, StoreError
from fedrec.core.files import (
    PUBLIC,
    atomic_write,
    read_private,
    sweep,
    write_arrays,
    write_json,
    write_secret,
)
from fedrec_client import Client, Consent, MemoryStore
from fedrec_client.node.local_state import LocalStore
from fedrec_client.store import SqliteStore, open_vault
from fedrec_client.store import _database as database_module
from fedrec_client.store._database import MAKING, STAGED
from fedrec_client.testing import NOW, FakePlatform

HERE: dict[str, Any] = {"population": "a", "trust": TRUST, "platform": FakePlatform()}


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The worst umask: what a file may be, it is."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_file_of_a_store_is_its_owners_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at from a thread while the store works, and at each moment at which SQLite opens a file."""
    folder, seen, done = tmp_path / "device", list[tuple[str, int]](), threading.Event()
    real = sqlite3.connect

    def watched(path: Path, **options: Any) -> sqlite3.Connection:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "made before SQLite sees it"
        return real(path, **options)

    def watch() -> None:
        while not done.is_set():
            for path in folder.glob("**/*") if folder.exists() else ():
                try:
                    if stat.S_ISREG((found := path.stat()).st_mode):
                        seen.append((path.name, stat.S_IMODE(found.st_mode)))
                except FileNotFoundError:
                    continue

    monkeypatch.setattr(database_module.sqlite3, "connect", watched)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Client.open(folder, **HERE) as client:
            for k in range(30):
                client.log_event("play", item=f"film-{k}", time=NOW + k)
                client.set_consent(Consent(train=bool(k % 2)))
            client.delete_data(since=NOW + 20)
            client.export_data(folder / "mine.jsonl")
            client.delete_data()
        with Client.open(folder, repair=True, **HERE):
            pass
    finally:
        done.set()
        watcher.join()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {mode for _, mode in seen} == {0o600}
    assert {name for name, _ in seen} >= {
        DATABASE,
        f"{DATABASE}-wal",
        "store.key",
        "store.lock",
        "mine.jsonl",
    }


def test_a_folder_that_was_there_is_tightened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o755)
    with Client.open(tmp_path, **HERE) as client:
        client.log_event("play", item="film-1")
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700 and set(modes(tmp_path).values()) == {0o600}
    assert "others could look into store folder" in caplog.text


def test_files_that_others_could_read_are_tightened(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / DATABASE).chmod(0o644)
    store = opened(tmp_path)
    store.add_event(told(1, 1.0))
    assert set(modes(tmp_path).values()) == {0o600}
    store.close()


LINKS = [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", "store.lock", "vault.json"]


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", [*LINKS, "store.key", STAGED])
def test_a_link_in_the_place_of_a_file_is_refused_in_one_line(
    tmp_path: Path, name: str, dangling: bool
) -> None:
    folder, victim = tmp_path / "device", tmp_path / "victim"
    store = opened(folder)
    store.add_event(told(1, 1.0))
    store.close()
    path = folder / name
    if path.exists():
        path.rename(victim)
    elif not dangling:
        victim.write_bytes(b"another file")
    before = victim.read_bytes() if victim.exists() else None
    if dangling and victim.exists():
        victim.rename(tmp_path / "elsewhere")
    path.symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link") as caught:
        SqliteStore.open(folder, open_vault(folder) if name != "vault.json" else None)
    assert "\n" not in str(caught.value)
    if dangling:
        assert not victim.exists(), "nothing was made through the link"
    else:
        assert victim.read_bytes() == before, "nothing was written through the link"


@pytest.mark.parametrize("name", LINKS)
def test_links_in_an_empty_folder_are_refused_too(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="symbolic link"):
        SqliteStore.open(folder)
    assert not (tmp_path / "victim").exists()


def test_a_link_in_the_place_of_a_new_file_goes(tmp_path: Path) -> None:
    folder, victim = tmp_path / "device", tmp_path / "victim"
    victim.write_bytes(b"another file")
    store = opened(folder)
    store.add_event(told(1, 1.0))
    (folder / MAKING).symlink_to(victim)
    (folder / STAGED).symlink_to(victim)
    store.delete_events()
    assert victim.read_bytes() == b"another file" and not (folder / MAKING).exists()
    assert not (folder / DATABASE).is_symlink()
    store.close()


def test_a_folder_of_another_account_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StoreError, match="another account"):
        SqliteStore.open(tmp_path)


def test_an_export_goes_through_no_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "mine.jsonl"
    link.symlink_to(victim)
    client = Client.open(tmp_path / "device", store=MemoryStore(), **HERE)
    with pytest.raises(DataError, match="there already"):
        client.export_data(link)
    assert not victim.exists()


# Files in general ----------------------------------------------------------------------------------------


def test_written_files_are_their_owners_unless_meant_for_others(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"1")
    write_json(tmp_path / "b", {})
    write_arrays(tmp_path / "c", {})
    write_secret(tmp_path / "d", b"1")
    atomic_write(tmp_path / "e", b"1", PUBLIC)
    assert modes(tmp_path) == {"a": 0o600, "b": 0o600, "c": 0o600, "d": 0o600, "e": 0o644}


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"another file")
    (tmp_path / "a").symlink_to(tmp_path / "victim")
    atomic_write(tmp_path / "a", b"1")
    assert (tmp_path / "victim").read_bytes() == b"another file" and not (tmp_path / "a").is_symlink()
    (tmp_path / "b").symlink_to(tmp_path / "nothing")
    with pytest.raises(RunError, match="not replaced"):
        write_secret(tmp_path / "b", b"1")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(OSError, match=r"symbolic|links"):
        read_private(tmp_path / "b")


def test_content_and_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, sync, replace = list[str](), os.fsync, Path.replace

    def synced(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replaced(path: Path, target: Path) -> Path:
        order.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    atomic_write(tmp_path / "a", b"1")
    assert order == ["file", "name", "folder"]


def test_what_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a", b"old")

    def fails(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(os, "fsync", fails)
        atomic_write(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": b"old"}
    (tmp_path / ".a.1234.tmp").write_bytes(b"of a killed process")
    sweep(tmp_path / "a")
    assert contents(tmp_path) == {"a": b"old"}


def test_personal_state_of_a_node_is_its_owners(tmp_path: Path) -> None:
    import numpy as np

    folder = tmp_path / "local"
    (store := LocalStore(folder)).put("refit", 1, {"user": np.zeros(2)}, persist=True)
    assert set(modes(folder).values()) == {0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / ".final-000001.safetensors.12.tmp").write_bytes(b"of a killed node")
    assert LocalStore(folder).before("refit", 2) and store and len(modes(folder)) == 1
