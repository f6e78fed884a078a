"""Deleted is deleted: no file opens to it with the store's key, while the app runs, after a kill, nor from a copy."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import DATABASE, TRUST, contents, left, opened, opens, ran, rows, told

from fedrec.core.errors import StoreError, StoreFull, StoreLocked
from fedrec_client import Client, Retention
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.store import sqlite as sqlite_module
from fedrec_client.store._database import MAKING, STAGED
from fedrec_client.testing import DAY, NOW, FakePlatform

IDS = [f"event-{k}" for k in range(40)]


def filled(folder: Path) -> SqliteStore:
    """Forty events in twenty transactions, a record and a log."""
    store = opened(folder)
    for k in range(0, 40, 2):
        with store.transaction():
            store.add_event(told(k, k))
            store.add_event(told(k + 1, k + 1))
    store.put("training/abc", b"a secret key")
    store.append("participation", b"1")
    return store


DELETIONS: dict[str, tuple[Callable[[SqliteStore], object], set[str]]] = {
    "all events": (lambda s: s.delete_events(), set()),
    "the later half": (lambda s: s.delete_events(since=20), {f"event-{k}" for k in range(20)}),
    "one item": (lambda s: s.delete_events(item="item-7"), {*IDS} - {"event-7"}),
    "by age": (lambda s: s.expire(Retention(9.5, None), 39), {f"event-{k}" for k in range(30, 40)}),
    "by number": (lambda s: s.expire(Retention(None, 5), 39), {f"event-{k}" for k in range(35, 40)}),
    "everything": (lambda s: s.erase(1.0, {}, {}), set()),
}


@pytest.mark.parametrize("what", DELETIONS)
def test_no_file_opens_to_what_was_deleted(tmp_path: Path, what: str) -> None:
    delete, kept = DELETIONS[what]
    gone = {*IDS} - kept
    store = filled(tmp_path)
    before = contents(tmp_path)
    old_key = FileVault(tmp_path).key()
    assert left(tmp_path, IDS)[f"{DATABASE}-wal"] == {*IDS}, "the search finds what is there"
    with (tmp_path / DATABASE).open("rb") as reader, (tmp_path / f"{DATABASE}-wal").open("rb") as log:
        delete(store)
        assert left(tmp_path, gone, reader.read(), log.read()) == {}, "the app runs"
    assert {event.id for event in store.events()} == kept
    assert left(tmp_path, gone, *before.values()) == {}, "copies from before"
    assert not [name for name, content in contents(tmp_path).items() if old_key.hex().encode() in content]
    store.add_event(told(99, 99.0))
    assert left(tmp_path, gone) == {}
    store.close()
    assert left(tmp_path, gone) == {}, "the app was closed"
    again = opened(tmp_path)
    again.check()
    assert {event.id for event in again.events()} == kept | {"event-99"}
    assert left(tmp_path, gone) == {}, "the app was opened again"
    again.close()


def test_what_was_removed_is_gone_like_events(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.close()
    before = rows(tmp_path / DATABASE)["records"]
    store = opened(tmp_path)
    store.remove("training/abc")
    sealer = sqlite_module.Sealer(FileVault(tmp_path).key())
    for _, key, sealed in before:
        with pytest.raises(StoreError):
            sealer.open("records", key, sealed)
    assert len(store.events()) == 40 and store.names() == []
    store.close()


def test_no_other_connection_can_hold_an_earlier_state_open(tmp_path: Path) -> None:
    """A reader of the log's older frames would keep them alive: there is none beside the store."""
    store = filled(tmp_path)
    reader = sqlite3.connect(tmp_path / DATABASE, timeout=0.05)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        reader.execute("SELECT count(*) FROM events").fetchone()
    store.delete_events()
    assert left(tmp_path, IDS) == {}
    reader.close()
    store.close()
    earlier = sqlite3.connect(tmp_path / DATABASE, timeout=0.05)
    earlier.execute("BEGIN")
    earlier.execute("SELECT count(*) FROM events").fetchone()
    with pytest.raises(StoreLocked, match="another process"):
        opened(tmp_path)
    earlier.close()


def test_an_item_of_the_users_history_can_be_deleted(tmp_path: Path) -> None:
    with Client.open(tmp_path, population="a", trust=TRUST, platform=FakePlatform()) as client:
        ids = [client.log_event("like", item=f"film-{k % 3}", time=NOW + k) for k in range(6)]
        assert client.delete_data(item="film-1").events == 2
        assert client.delete_data(since=NOW + 3, item="film-2").events == 1
        assert [event.item for event in client.events()] == ["film-0", "film-2", "film-0"]
        assert left(tmp_path, [ids[1], ids[4], ids[5]]) == {}
        assert client.delete_data(item="none").events == 0


def test_expired_events_are_gone_when_the_app_opens(tmp_path: Path) -> None:
    platform, settings_ = FakePlatform(), {"population": "a", "trust": TRUST}
    with Client.open(tmp_path, platform=platform, **settings_) as client:
        ids = [client.log_event("like", item=f"film-{k}") for k in range(5)]
    platform.pass_time(6 * DAY)
    with Client.open(tmp_path, platform=platform, retention=Retention(5 * DAY, None), **settings_) as client:
        assert client.events() == [] and left(tmp_path, ids) == {}


@pytest.mark.parametrize("room", [0, 12_000, 20_000])
def test_without_room_nothing_is_deleted_and_nothing_is_lost(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills while the new file is written; the call says so, and works once there is room."""
    store = filled(tmp_path)
    key = FileVault(tmp_path).key()
    real = sqlite_module.renewal.write_all

    def full(connection: sqlite3.Connection, *rest: object) -> object:
        connection.execute(f"PRAGMA max_page_count = {max(room // 4096, 1)}")
        return real(connection, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(StoreFull):
        patch.setattr(sqlite_module.renewal, "write_all", full)
        store.delete_events(since=39)
    assert len(store.events()) == 40 and FileVault(tmp_path).read().keys == (key,)
    assert not {MAKING, STAGED} & set(contents(tmp_path))
    store.add_event(told(40, 40.0))
    assert store.delete_events(since=39) == 2 and left(tmp_path, ["event-39", "event-40"]) == {}
    store.close()


BEHIND = """
import os, signal, sys
from pathlib import Path
from fedrec_client import Client
from fedrec_client.testing import NOW, FakePlatform, FakeService
trust = FakeService("a").trust
client = Client.open(Path(sys.argv[1]), population="a", trust=trust, platform=FakePlatform())
for k in range(40):
    client.log_event("play", item=f"item-{k}", time=NOW + k, event_id=f"event-{k}")
client.delete_data(since=NOW) if sys.argv[2] == "since" else client.delete_data()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["since", "all"])
def test_killed_right_behind_the_call_nothing_opens(tmp_path: Path, how: str) -> None:
    run = subprocess.run([sys.executable, "-c", BEHIND, str(tmp_path), how], check=False, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-500:]
    assert left(tmp_path, IDS) == {}, "before the store is opened again"
    store = opened(tmp_path)
    assert store.events() == [] and left(tmp_path, IDS) == {}
    store.close()


#: Kills a deletion before each call that touches a file, then opens the store again and tells what is left.
KILLED = """
import json, logging, os, shutil, signal, sys
from pathlib import Path
logging.disable(logging.CRITICAL)
from fedrec_client.store import Retention
from store_helpers import left, opened, told

base, what = Path(sys.argv[1]), sys.argv[2]
work, ids = base.with_name("work"), [f"event-{k}" for k in range(6)]
TOUCHES = {"fsync", "replace", "unlink", "open", "execute", "close", "write"}

def delete(store):
    if what == "half": store.delete_events(since=3)
    if what == "age": store.expire(Retention(2.5, None), 5)
    if what == "all": store.erase(1.0, {"kept": b"1"}, {"book": [b"2"]})

def die_at(step):
    seen = [0]
    def profile(frame, event, called):
        if event == "c_call" and called.__name__ in TOUCHES:
            seen[0] += 1
            if seen[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)

step, killed = 0, 1
while killed:
    step += 1
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    child = os.fork()
    if child == 0:
        if what not in ("repair", "create"):
            store = opened(work)
        die_at(step)
        if what in ("repair", "create"):
            store = opened(work, repair=what == "repair")
        else:
            delete(store)
        os.kill(os.getpid(), signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    killed = os.WTERMSIG(status) == signal.SIGKILL
    store = opened(work, repair=what == "repair")
    store.check()
    kept = {event.id for event in store.events()}
    files = sorted(path.name for path in work.iterdir())
    found = left(work, set(ids) - kept)
    told_ = {"step": step, "kept": sorted(kept), "found": sorted(found), "files": files}
    print(json.dumps(told_ | {"names": store.names(), "logs": store.logs(), "killed": bool(killed)}))
    store.add_event(told(77, 77.0))
    store.close()
"""
FILES = [DATABASE, f"{DATABASE}-wal", "store.key", "store.lock", "vault.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "kept"), [("half", 3), ("age", 3), ("all", 0)])
def test_killed_at_any_step_a_deletion_is_done_or_was_not_begun(tmp_path: Path, what: str, kept: int) -> None:
    base = tmp_path / "base"
    store = opened(base)
    for k in range(6):
        store.add_event(told(k, k))
    store.put("other", b"1")
    store.close()
    steps = ran(KILLED, str(base), what)
    assert len(steps) > 40
    numbers = []
    for each in steps:
        assert isinstance(each, dict)
        assert each["found"] == [] and set(each["files"]) <= set(FILES), each
        assert each["names"] == (["kept"] if what == "all" and not each["kept"] else ["other"])
        numbers.append(len(each["kept"]))
    assert set(numbers) == {6, kept} and numbers == sorted(numbers, reverse=True)
    assert not steps[-1]["killed"] and numbers[-1] == kept  # type: ignore[index]


@pytest.mark.slow
def test_killed_at_any_step_of_its_making_a_store_is_made_in_the_end(tmp_path: Path) -> None:
    """And no half-made one is taken for one that was robbed of its database."""
    (tmp_path / "base").mkdir()
    steps = ran(KILLED, str(tmp_path / "base"), "create")
    assert len(steps) > 30
    for each in steps:
        assert isinstance(each, dict)
        assert each["kept"] == [] and each["logs"] == [] and set(each["files"]) <= set(FILES), each


@pytest.mark.slow
def test_killed_at_any_step_a_repair_is_done_in_the_end(tmp_path: Path) -> None:
    """What was deleted before stays so, and what is sound is there at the end."""
    base = tmp_path / "base"
    store = opened(base)
    for k in range(8):
        store.add_event(told(k, k))
    store.delete_events(since=6)
    store.close()
    raw = sqlite3.connect(base / DATABASE, isolation_level=None)
    raw.execute("DELETE FROM events WHERE row = 6")
    raw.close()
    for each in ran(KILLED, str(base), "repair"):
        assert isinstance(each, dict)
        assert each["kept"] == [f"event-{k}" for k in range(5)] and each["logs"] == ["repairs"]
        assert each["found"] == [] and "events.db.damaged-1" not in each["files"]


def test_a_repaired_store_and_the_damaged_one_open_to_nothing_deleted_later(tmp_path: Path) -> None:
    filled(tmp_path).close()
    raw = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    raw.execute("UPDATE events SET sealed = zeroblob(156) WHERE row = 3")
    raw.close()
    damaged = (tmp_path / DATABASE).read_bytes()
    store = opened(tmp_path, repair=True)
    assert len(store.events()) == 39
    store.delete_events()
    assert left(tmp_path, IDS, damaged) == {}
    store.close()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=5))
def test_any_run_of_deletions_leaves_exactly_the_others(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store, plain, number = opened(folder), dict[str, int](), 0
    copies: list[bytes] = []
    for place, reopen in script:
        for _ in range(3):
            store.add_event(told(number, number))
            plain[f"event-{number}"] = number
            number += 1
        copies += contents(folder).values()
        store.delete_events(since=place)
        plain = {name: time for name, time in plain.items() if time < place}
        gone = {f"event-{k}" for k in range(number)} - set(plain)
        assert {event.id for event in store.events()} == set(plain)
        assert left(folder, gone, *copies) == {}
        if reopen:
            store.close()
            store = opened(folder)
    store.close()
    shutil.rmtree(folder)


def test_the_search_itself_finds_what_it_should(tmp_path: Path) -> None:
    """The key from before a deletion opens a copy from before it: what protects is that the key is gone."""
    store = filled(tmp_path)
    copy, key = (tmp_path / f"{DATABASE}-wal").read_bytes(), FileVault(tmp_path).key()
    store.delete_events()
    assert opens(copy, [key], IDS) == {*IDS} and opens(copy, [FileVault(tmp_path).key()], IDS) == set()
    store.close()
