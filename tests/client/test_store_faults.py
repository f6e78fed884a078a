"""Killed, full, damaged: what was acknowledged is there, what is not sound is never passed off as data."""

from __future__ import annotations

import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from real_parts import miss

from fedrec.core.errors import StoreCorrupt, StoreError
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.store.events import Event, EventType
from fedrec_client.store.repair import REPAIRS
from fedrec_client.store.sqlite import DATABASE

WRITER = """
import sys
from pathlib import Path
from fedrec_client.store.events import Event, EventType
from fedrec_client.store import FileVault, SqliteStore
store = SqliteStore.open(Path(sys.argv[1]), FileVault(Path(sys.argv[1])))
for k in range(100_000):
    store.add_event(Event(EventType.PLAY, f"item-{k}", float(k), id=f"{sys.argv[2]}-{k}"))
    print("event", k, flush=True)
    with store.transaction():
        store.put("pair", str(k).encode())
        store.append("log", str(k).encode())
    print("pair", k, flush=True)
"""


def opened(folder: Path, repair: bool = False) -> SqliteStore:
    return SqliteStore.open(folder, FileVault(folder), repair=repair)


def checked(folder: Path) -> list[Event]:
    """The events of a store that was read whole."""
    store = opened(folder)
    try:
        store.check()
        return store.events()
    finally:
        store.close()


def made(folder: Path, events: int = 60, entries: int = 6) -> list[Event]:
    """A closed store with events, two records and a log."""
    FileVault.create(folder)
    store = opened(folder)
    told = [Event(EventType.PLAY, f"item-{k}", float(k), id=f"e{k}") for k in range(events)]
    with store.transaction():
        for event in told:
            store.add_event(event)
        for k in range(entries):
            store.append("participation", str(k).encode())
        store.put("a", b"1")
        store.put("b", bytes(9000))
    store.close()
    return told


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Killed at random moments, again and again, on the same file."""
    FileVault.create(tmp_path)
    opened(tmp_path).close()
    rng = random.Random(5)
    acknowledged: set[str] = set()
    pairs = 0
    for run in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(run)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        last_pair = -1
        for _ in range(rng.randrange(1, 60)):
            kind, number = child.stdout.readline().split()
            acknowledged |= {f"{run}-{number}"} if kind == "event" else set()
            last_pair = int(number) if kind == "pair" else last_pair
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        for line in rest.splitlines():
            if len(line.split()) == 2 and line.split()[0] == "event":
                acknowledged.add(f"{run}-{line.split()[1]}")
            elif len(line.split()) == 2:
                last_pair = int(line.split()[1])
        pairs += last_pair + 1
        store = opened(tmp_path)
        ids = [event.id for event in store.events()]
        assert len(ids) == len(set(ids)) and acknowledged <= set(ids)
        entries = store.entries("log")
        assert len(entries) in (pairs, pairs + 1)
        assert not entries or store.get("pair") == entries[-1]
        pairs = len(entries)
        store.check()
        store.close()


FILLER = """
import json, resource, signal, sys
from pathlib import Path
from fedrec.core.errors import StoreFull
from fedrec_client.store.events import Event, EventType
from fedrec_client.store import FileVault, SqliteStore
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
store = SqliteStore.open(folder, FileVault(folder))
told, refused = [], 0
for k in range(20_000):
    try:
        store.add_event(Event(EventType.PLAY, "x" * 100, float(k), id=f"e{k}"))
        told.append(f"e{k}")
    except StoreFull as error:
        refused += 1
        message = str(error)
        if refused == 3:
            break
seen = [event.id for event in store.events()]
store.close()
print(json.dumps({"told": told, "seen": seen, "refused": refused, "message": message}))
"""


@pytest.fixture(params=["file limit", "small disk"])
def full_disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """A folder where a few hundred kB fit, and the limit to set."""
    folder = tmp_path / "device"
    folder.mkdir()
    if request.param == "file limit":
        return folder, 600_000
    command = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        miss("small disk")
    request.addfinalizer(lambda: subprocess.run(["umount", str(folder)], check=True))
    return folder, 0


def test_a_full_disk_loses_nothing(full_disk: tuple[Path, int]) -> None:
    folder, limit = full_disk
    FileVault.create(folder)
    opened(folder).close()
    run = subprocess.run(
        [sys.executable, "-c", FILLER, str(folder), str(limit)], capture_output=True, text=True, check=True
    )
    told = json.loads(run.stdout)
    assert told["refused"] == 3 and told["seen"] == told["told"] and len(told["told"]) > 100
    assert "what was acknowledged is kept" in told["message"]
    if not limit:
        subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    store = opened(folder)
    assert [event.id for event in store.events()] == told["told"]
    assert store.add_event(Event(EventType.PLAY, "room again", 1e9))
    store.close()


def flip(path: Path, places: list[int]) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0x55
    path.write_bytes(data)


def test_flipped_bytes_are_noticed_and_the_rest_is_rescued(tmp_path: Path) -> None:
    """Anywhere in the file: whatever is read is either what was told, or an error."""
    told = {event.id: event for event in made(tmp_path)}
    good, key = ((tmp_path / name).read_bytes() for name in (DATABASE, "store.key"))
    rng = random.Random(3)
    rescued = noticed = 0
    for _ in range(40):
        (tmp_path / DATABASE).write_bytes(good)
        flip(tmp_path / DATABASE, [rng.randrange(len(good)) for _ in range(3)])
        try:
            assert {event.id: event for event in checked(tmp_path)} == told
            continue
        except StoreError:
            noticed += 1
        store = opened(tmp_path, repair=True)
        events = {event.id: event for event in store.events()}
        assert all(told[name] == event for name, event in events.items())
        lost = json.loads(store.entries(REPAIRS)[-1])["lost"]
        entries = store.entries("participation")
        assert len(events) == 60 or lost["events"]
        assert len(entries) == 6 or lost["entries"]
        rescued += len(events)
        store.add_event(Event(EventType.PLAY, "goes on", 1e9))
        store.close()
        (tmp_path / "store.key").write_bytes(key)
    assert noticed > 20 and rescued > 30 * noticed


@pytest.mark.parametrize("end", [50, 4096, 20_000])
def test_a_cut_file_is_noticed(tmp_path: Path, end: int) -> None:
    made(tmp_path, events=300)
    path = tmp_path / DATABASE
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(StoreCorrupt):
        checked(tmp_path)
    store = opened(tmp_path, repair=True)
    assert json.loads(store.entries(REPAIRS)[-1])["lost"]["entries"] >= 1
    assert [path.name for path in tmp_path.iterdir() if "damaged" in path.name] == []
    store.close()


def edit(path: Path, statement: str) -> None:
    raw = sqlite3.connect(path, isolation_level=None)
    raw.executescript(statement)
    raw.close()


SWAP = """
CREATE TEMP TABLE two AS SELECT row, sealed FROM {table} ORDER BY row LIMIT 2;
UPDATE {table} SET sealed = (SELECT sealed FROM two WHERE two.row <> {table}.row)
WHERE row IN (SELECT row FROM two);
"""


@pytest.mark.parametrize(
    "statement",
    [
        SWAP.format(table="events"),
        SWAP.format(table="entries"),
        "UPDATE records SET sealed = (SELECT sealed FROM events LIMIT 1)",
        "DELETE FROM entries WHERE row = 3",
        "DELETE FROM entries WHERE row = 6",
        "DELETE FROM events WHERE row = 60",
        "UPDATE events SET row = row + 100",
        "UPDATE root SET sealed = zeroblob(200)",
        "DELETE FROM root",
        "DELETE FROM entries",
    ],
)
def test_rows_moved_or_taken_away_are_noticed(tmp_path: Path, statement: str) -> None:
    made(tmp_path)
    edit(tmp_path / DATABASE, statement)
    with pytest.raises(StoreCorrupt, match="repair=True"):
        checked(tmp_path)
    store = opened(tmp_path, repair=True)
    store.check()
    lost = json.loads(store.entries(REPAIRS)[-1])["lost"]
    assert sum(lost.values()) >= 1
    store.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    made(tmp_path)
    store = opened(tmp_path)
    store.close()
    with pytest.raises(StoreError, match="open it again"):
        store.events()
    store.close()


def test_limits_of_this_test_run_are_as_before() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
