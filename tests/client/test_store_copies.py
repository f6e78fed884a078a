"""Older copies: of rows, of the database, of the folder. What is put back is noticed, and counts as the worst."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import DATABASE, TRUST, Ring, left, opened, rows, told

from fedrec.core.errors import StoreCorrupt, StoreError, StoreLocked
from fedrec_client import Client, Consent, Policy
from fedrec_client.store import FileVault, KeychainVault, SqliteStore
from fedrec_client.store._held import Held
from fedrec_client.store._vault import open_vault
from fedrec_client.terms.consent import NOTHING, read_consent, write_consent
from fedrec_client.terms.participation import Book
from fedrec_client.testing import NOW, FakePlatform, store_of

HERE: dict[str, Any] = {"population": "a", "trust": TRUST, "platform": FakePlatform()}
Rows = dict[str, list[tuple[int, bytes, bytes]]]


def put_back(path: Path, old: Rows, tables: tuple[str, ...], *, remove: bool = True) -> None:
    """Rows of an older copy into the file, table by table, by whoever can write it and has no key."""
    raw = sqlite3.connect(path, isolation_level=None)
    for table in tables:
        if table == "root":
            raw.execute("UPDATE root SET sealed = ?", (old["root"][0][2],))
            continue
        if remove:
            raw.execute(f"DELETE FROM {table}")
        raw.executemany(f"INSERT OR REPLACE INTO {table} (row, key, sealed) VALUES (?, ?, ?)", old[table])
    raw.close()


def history(folder: Path) -> Rows:
    """Consent is given, copied, then spent under and withdrawn; the rows of the copy."""
    with Client.open(folder, **HERE) as client:
        client.log_event("play", item="before", event_id="before")
        client.set_consent(Consent(train=True))
    old = rows(folder / DATABASE)
    with Client.open(folder, **HERE) as client:
        Book(store_of(client)).note("charged", NOW, job="ab", round=1, epsilon=15.9, delta=1e-6)
        client.set_consent(Consent(train=False))
        client.log_event("play", item="after", event_id="after")
    return old


@pytest.mark.parametrize(
    "tables",
    [
        ("records",),
        ("entries",),
        ("events",),
        ("records", "entries"),
        ("records", "entries", "events"),
        ("root",),
        ("records", "root"),
        ("records", "entries", "events", "root"),
    ],
)
def test_rows_of_an_older_copy_are_refused_and_count_as_the_worst(
    tmp_path: Path, tables: tuple[str, ...]
) -> None:
    old = history(tmp_path)
    put_back(tmp_path / DATABASE, old, tables)
    with pytest.raises(StoreCorrupt, match="repair=True") as caught:
        Client.open(tmp_path, **HERE)
    assert "\n" not in str(caught.value)
    with Client.open(tmp_path, repair=True, **HERE) as client:
        assert not client.consent.train and not client.consent.metrics
        if tables == ("events",):  # the others are exactly those that were left here
            assert Book(store_of(client)).spent().epsilon == 15.9
        else:
            assert client.consent == NOTHING and Book(store_of(client)).damaged
            assert "was damaged" in next(Policy().exhausted(Book(store_of(client)), NOW))
            assert client.privacy_report().as_dict()["lifetime"]["epsilon"] == "inf"


def test_nothing_is_agreed_to_after_a_loss_until_the_user_is_asked_again(tmp_path: Path) -> None:
    old = history(tmp_path)
    put_back(tmp_path / DATABASE, old, ("records", "entries"))
    for repair in (True, False, False):
        with Client.open(tmp_path, repair=repair, **HERE) as client:
            assert client.consent == NOTHING
    with Client.open(tmp_path, **HERE) as client:
        client.set_consent(Consent(train=True))
    with Client.open(tmp_path, **HERE) as client:
        assert client.consent == Consent(train=True) and Book(store_of(client)).damaged
    raw = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    raw.execute("DELETE FROM entries")
    raw.close()
    with Client.open(tmp_path, repair=True, **HERE) as client:
        assert client.consent == NOTHING, "the word was given after the first loss, not after the second"


def test_a_budget_that_was_lost_stays_lost_through_a_deletion(tmp_path: Path) -> None:
    put_back(tmp_path / DATABASE, history(tmp_path), ("entries",))
    with Client.open(tmp_path, repair=True, **HERE) as client:
        client.delete_data()
        assert Book(store_of(client)).spent().epsilon >= 1e9
        assert list(Policy().exhausted(Book(store_of(client)), NOW))


@pytest.mark.parametrize(
    "tables", [("events",), ("events", "root"), ("events", "records", "entries", "root")]
)
def test_deleted_events_that_are_put_back_are_noticed(tmp_path: Path, tables: tuple[str, ...]) -> None:
    store = opened(tmp_path)
    for k in range(6):
        store.add_event(told(k, k))
    store.close()
    old, copy = rows(tmp_path / DATABASE), (tmp_path / DATABASE).read_bytes()
    store = opened(tmp_path)
    store.delete_events(since=3)
    store.close()
    put_back(tmp_path / DATABASE, old, tables)
    with pytest.raises(StoreCorrupt):
        opened(tmp_path)
    store = opened(tmp_path, repair=True)
    assert not {event.id for event in store.events()} & {"event-3", "event-4", "event-5"}
    store.close()
    (tmp_path / DATABASE).write_bytes(copy)
    with pytest.raises(StoreCorrupt):
        opened(tmp_path)
    store = opened(tmp_path, repair=True)
    assert store.events() == [] and left(tmp_path, [f"event-{k}" for k in range(6)]) == {}
    store.close()


def test_a_database_that_was_taken_away_is_no_new_beginning(tmp_path: Path) -> None:
    history(tmp_path)
    (tmp_path / DATABASE).unlink()
    with pytest.raises(StoreCorrupt, match="is gone"):
        Client.open(tmp_path, **HERE)
    with Client.open(tmp_path, repair=True, **HERE) as client:
        assert client.consent == NOTHING and Book(store_of(client)).damaged and client.events() == []


def test_the_last_changes_cannot_be_cut_off_with_the_log(tmp_path: Path) -> None:
    """A killed app leaves its last changes in the write-ahead log; without the log they are missed."""
    history(tmp_path)
    store = opened(tmp_path)
    Book(store).note("charged", NOW, epsilon=1.0, delta=0.0)
    copy = tmp_path.with_name(f"{tmp_path.name}-killed")
    shutil.copytree(tmp_path, copy)
    store.close()
    (copy / f"{DATABASE}-wal").unlink()
    with pytest.raises(StoreCorrupt, match="the vault at"):
        opened(copy)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_any_row_of_any_older_copy_is_noticed(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Any of several copies, any rows of it, over or beside those of now."""
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("store")
    store, copies = opened(folder), list[Rows]()
    for k in range(4):
        with store.transaction():
            store.add_event(told(k, k))
            store.put("a", str(k).encode())
            store.put(f"b{k}", b"1")
            store.append("log", str(k).encode())
        if rng.random() < 0.3:
            store.delete_events(since=k)
        store.close()
        copies.append(rows(folder / DATABASE))
        store = opened(folder)
    store.put("a", b"last")
    store.close()
    now, old = rows(folder / DATABASE), rng.choice(copies)
    raw = sqlite3.connect(folder / DATABASE, isolation_level=None)
    for table in ("events", "records", "entries"):
        for row in old[table]:
            if rng.random() < 0.5:
                raw.execute(f"INSERT OR REPLACE INTO {table} (row, key, sealed) VALUES (?, ?, ?)", row)
        for row in now[table]:
            if rng.random() < 0.1:
                raw.execute(f"DELETE FROM {table} WHERE row = ?", row[:1])
    raw.close()
    if {name: set(found) for name, found in rows(folder / DATABASE).items()} == {
        name: set(found) for name, found in now.items()
    }:
        opened(folder).close()
    else:
        with pytest.raises(StoreCorrupt):
            opened(folder)
        again = opened(folder, repair=True)
        assert again.entries("repairs")
        again.close()
    shutil.rmtree(folder)


# The counter in the keychain -----------------------------------------------------------------------------


def test_a_whole_folder_put_back_is_noticed_where_there_is_a_keychain(tmp_path: Path) -> None:
    ring, folder = Ring(), tmp_path / "store"
    store = SqliteStore.open(folder, open_vault(folder, keychain=ring))
    write_consent(store, Consent(train=True), 1.0)
    store.close()
    shutil.copytree(folder, tmp_path / "copy")
    store = SqliteStore.open(folder, open_vault(folder, keychain=ring))
    write_consent(store, Consent(), 2.0)
    assert "whole folder is noticed" in store.describe()["older_copies"]
    store.close()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    with pytest.raises(StoreCorrupt, match="older copy"):
        SqliteStore.open(folder, open_vault(folder, keychain=ring))
    store = SqliteStore.open(folder, open_vault(folder, keychain=ring), repair=True)
    assert read_consent(store) == NOTHING and Book(store).damaged
    store.close()


def test_with_a_file_a_whole_folder_put_back_is_not_noticed_and_status_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    store.close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    store = opened(tmp_path / "store")
    store.put("a", b"1")
    assert "whole folder is not" in store.describe()["older_copies"]
    store.close()
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "copy", tmp_path / "store")
    store = opened(tmp_path / "store")
    assert store.get("a") is None
    store.close()


def test_events_write_nothing_to_the_keychain(tmp_path: Path) -> None:
    ring = Ring()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    before = ring.written
    for k in range(20):
        store.add_event(told(k, k))
    assert ring.written == before
    store.append("participation", b"1")
    store.put("consent", b"1")
    store.put("consent", b"1")
    assert ring.written == before + 2, "what changes nothing is not told"
    with store.transaction():
        store.append("participation", b"2")
        store.put("consent", b"2")
    assert ring.written == before + 3
    store.close()


class Crash(BaseException):
    """The process ends here."""


def dying(ring: Ring, at: int, *, before: bool) -> None:
    """Let the keychain's write number `at` from now on be the last thing that happens, or the first that does not."""
    real, seen = ring.set_password, [0]

    def write(*what: str) -> None:
        seen[0] += 1
        if seen[0] == at and before:
            raise Crash
        real(*what)
        if seen[0] == at:
            raise Crash

    ring.set_password = write  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[SqliteStore], object]] = {
    "put": lambda s: s.put("a", b"new"),
    "append": lambda s: s.append("l", b"new"),
    "delete": lambda s: s.delete_events(since=1),
    "erase": lambda s: s.erase(1.0, {"a": b"kept"}, {}),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_beside_the_keychain_locks_no_user_out(
    tmp_path: Path, change: str, at: int, before: bool
) -> None:
    """Before or after each write of the counter: the store opens, with the change or without, and is whole."""
    ring = Ring()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    for k in range(3):
        store.add_event(told(k, k))
    store.put("a", b"old")
    write = ring.set_password
    dying(ring, at, before=before)
    with contextlib.suppress(Crash):
        CHANGES[change](store)
    ring.set_password = write  # type: ignore[method-assign]
    store.close()
    for _ in range(2):
        store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
        store.check()
        events = [event.id for event in store.events()]
        assert events in (["event-0", "event-1", "event-2"], ["event-0"], [])
        held = KeychainVault(tmp_path, ring, json.loads((tmp_path / "vault.json").read_text())["name"]).read()
        assert len(held.keys) == 1
        gone = {f"event-{k}" for k in range(3)} - set(events)
        assert left(tmp_path, gone, keys=held.keys) == {}
        store.put("b", b"1")
        store.remove("b")
        store.close()


def test_a_keychain_that_cannot_be_written_is_told_and_caught_up_with(tmp_path: Path) -> None:
    ring = Ring()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    ring.fails = True
    store.add_event(told(0, 0.0))
    with pytest.raises(StoreLocked, match="keychain cannot be written"):
        store.put("a", b"1")
    assert store.get("a") == b"1", "it is on the disk"
    with pytest.raises(StoreLocked):
        store.delete_events()
    assert len(store.events()) == 1, "nothing is deleted under a key that cannot be replaced"
    ring.fails = False
    store.put("a", b"2")
    store.delete_events()
    store.close()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    assert store.get("a") == b"2" and store.events() == []
    store.close()


def test_a_keychain_that_is_behind_and_cannot_be_written_keeps_no_app_from_opening(tmp_path: Path) -> None:
    ring = Ring()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    ring.fails = True
    with pytest.raises(StoreLocked):
        store.put("a", b"1")
    store.close()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    assert store.get("a") == b"1"
    store.close()


def test_a_word_that_takes_back_holds_although_the_keychain_is_locked(tmp_path: Path) -> None:
    ring = Ring()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    client = Client.open(tmp_path, store=store, **HERE)
    client.set_consent(Consent(train=True))
    ring.fails = True
    with pytest.raises(StoreError):
        client.set_consent(Consent(train=False))
    assert not client.consent.train
    ring.fails = False
    client.close()
    store = SqliteStore.open(tmp_path, open_vault(tmp_path, keychain=ring))
    assert not read_consent(store).train
    store.close()


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_what_a_vault_holds_is_read_whole_or_refused(text: bytes) -> None:
    with pytest.raises(StoreLocked):
        Held.parse(text, "here")


@given(st.integers(0, 2**60), st.booleans())
def test_what_a_vault_holds_comes_back(counter: int, two: bool) -> None:
    held = Held.fresh()
    held = held.with_next(bytes(32)) if two else held.settled(held.keys[0], counter)
    assert Held.parse(held.to_bytes(), "here") == held


def test_a_key_of_another_store_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        store = opened(tmp_path / name)
        store.add_event(told(1, 1.0))
        store.close()
    shutil.copy(tmp_path / "a" / "store.key", tmp_path / "b" / "store.key")
    for repair in (False, True):
        with pytest.raises(StoreLocked, match="another key"):
            SqliteStore.open(tmp_path / "b", FileVault(tmp_path / "b"), repair=repair)
