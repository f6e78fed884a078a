"""What every store promises, held against both of them and against a plain list."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import DataError, StoreCorrupt, StoreError, StoreLocked
from fedrec_client.store import FileVault, MemoryStore, Retention, SqliteStore, Store
from fedrec_client.store._held import Held
from fedrec_client.store._sealing import Sealer
from fedrec_client.store.events import Event, EventType
from fedrec_client.store.exporting import export_lines, import_events
from fedrec_client.store.sqlite import DATABASE
from fedrec_client.store.timeline import Timeline

DAY = 86_400.0


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = disk(tmp_path) if request.param == "sqlite" else MemoryStore()
    yield made
    made.close()


def disk(folder: Path, **options: Any) -> SqliteStore:
    vault = FileVault(folder) if (folder / "vault.json").exists() else FileVault.create(folder)
    return SqliteStore.open(folder, vault, **options)


def event(item: str = "a", time: float = 0.0, **fields: Any) -> Event:
    return Event(EventType(fields.pop("type", "play")), item, time, **fields)


def test_events_come_back_by_time_then_as_they_came(store: Store) -> None:
    told = [event("late", 9), event("first", 1), event("second", 1), event("middle", 5, type="like")]
    assert all(store.add_event(each) for each in told)
    assert [each.item for each in store.events()] == ["first", "second", "middle", "late"]
    assert [each.item for each in store.events(since=5)] == ["middle", "late"]
    assert [each.item for each in store.events(types={EventType.LIKE})] == ["middle"]
    assert store.arrivals() == told


def test_telling_twice_is_harmless_and_the_first_stays(store: Store) -> None:
    assert store.add_event(event("a", 1, id="x"))
    assert not store.add_event(event("b", 2, id="x"))
    assert [each.item for each in store.events()] == ["a"]


def test_every_field_survives(store: Store) -> None:
    full = event(
        "ä" * 200,
        1.5,
        type="custom",
        name="share",
        value=-2.5,
        recommendation="r",
        context={"k": True, "n": 1},
    )
    store.add_event(full)
    assert store.events() == [full]


def test_records_are_written_in_the_place_of_earlier_ones(store: Store) -> None:
    assert store.get("a") is None
    for name, value in (("a", b"1"), ("b/x", bytes(5000)), ("a", b"2"), ("b/y", b"")):
        store.put(name, value)
    store.remove("none")
    assert (store.get("a"), store.get("b/x"), store.get("b/y")) == (b"2", bytes(5000), b"")
    assert store.names() == ["a", "b/x", "b/y"] and store.names("b/") == ["b/x", "b/y"]
    store.remove("a")
    assert store.get("a") is None


def test_logs_only_grow(store: Store) -> None:
    assert [store.append("l", bytes([k])) for k in range(5)] == [1, 2, 3, 4, 5]
    assert store.append("other", b"x") == 1
    assert store.entries("l") == [bytes([k]) for k in range(5)]
    assert store.entries("none") == [] and store.logs() == ["l", "other"]


def test_a_transaction_is_whole_or_not_at_all(store: Store) -> None:
    store.add_event(event("kept", 1))
    with pytest.raises(RuntimeError), store.transaction():
        store.add_event(event("gone", 2))
        with store.transaction():
            store.put("gone", b"")
            store.append("gone", b"")
        raise RuntimeError
    assert [each.item for each in store.events()] == ["kept"]
    assert store.names() == [] and store.entries("gone") == [] and store.logs() == []
    with store.transaction():
        store.add_event(event("new", 3))
        store.append("l", b"1")
    assert len(store.events()) == 2 and store.append("l", b"2") == 2


def test_retention_by_age_and_number(store: Store) -> None:
    for day in range(10):
        store.add_event(event(str(day), day * DAY))
    assert store.expire(Retention(None, None), 1e12) == 0
    assert store.expire(Retention(max_age_seconds=7 * DAY, max_events=None), 9 * DAY) == 2
    assert store.expire(Retention(None, max_events=3), 0) == 5
    assert [each.item for each in store.events()] == ["7", "8", "9"]
    assert store.delete_events(since=8 * DAY) == 2 and store.delete_events() == 1


def test_erasing_leaves_what_is_named_and_nothing_else(store: Store) -> None:
    store.add_event(event())
    store.put("a", b"1")
    store.append("l", b"1")
    receipt = store.erase(5.0, {"kept": b"2"}, {"book": [b"3"]})
    assert (receipt.events, receipt.records, receipt.entries, receipt.time) == (1, 1, 1, 5.0)
    assert receipt.key_destroyed
    assert store.events() == [] and store.names() == ["kept"] and store.logs() == ["book"]
    assert store.append("book", b"4") == 2 and store.entries("book") == [b"3", b"4"]
    assert store.add_event(event())


def test_events_of_one_item_go_alone(store: Store) -> None:
    for k in range(6):
        store.add_event(event("ab"[k % 2], k))
    assert store.delete_events(item="a", since=2) == 2 and store.delete_events(item="none") == 0
    assert [(each.item, each.time) for each in store.events()] == [("a", 0), ("b", 1), ("b", 3), ("b", 5)]


def test_a_deletion_in_a_transaction_that_fails_deletes_nothing(store: Store) -> None:
    store.add_event(event("kept", 1))
    store.put("a", b"1")
    with pytest.raises(RuntimeError), store.transaction():
        store.put("a", b"2")
        store.remove("a")
        store.delete_events()
        store.put("a", b"3")
        store.append("l", b"1")
        raise RuntimeError
    assert [each.item for each in store.events()] == ["kept"] and store.get("a") == b"1"
    store.put("a", b"4")
    assert store.logs() == [] and store.append("l", b"1") == 1
    with store.transaction():
        store.add_event(event("new", 2))
        store.delete_events(since=2)
        store.add_event(event("newer", 3))
        store.put("b", b"1")
    assert [each.item for each in store.events()] == ["kept", "newer"]
    assert store.names() == ["a", "b"] and store.get("a") == b"4"


def test_threads_share_a_store(store: Store) -> None:
    def tell(thread: int) -> None:
        for k in range(25):
            store.add_event(event(f"{thread}-{k}", k))
            store.append("l", b"x")

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.item for each in store.events()}) == 100 == len(store.entries("l"))


def test_an_export_is_everything_and_events_move(store: Store) -> None:
    store.add_event(event("a", 1))
    store.put("settings", b'{"on": true}')
    store.append("consent", b"\xff")
    lines = list(export_lines(store))
    plain = [json.loads(line) for line in lines]
    assert [each["kind"] for each in plain] == ["event", "record", "entry"]
    assert plain[1]["json"] == {"on": True} and plain[2]["bytes"] == "/w=="
    other = MemoryStore()
    assert import_events(other, lines) == 1 and import_events(other, lines) == 0
    assert other.events() == store.events()
    with pytest.raises(DataError, match="line 2"):
        import_events(other, [lines[0].replace(store.events()[0].id, "new"), "nonsense"])
    assert len(other.events()) == 1


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 12), st.integers(0, 5)),
        st.tuples(st.just("expire"), st.integers(0, 6), st.integers(0, 6)),
        st.tuples(st.just("delete"), st.integers(0, 5), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=100)
@given(moves)
def test_a_timeline_is_a_sorted_list(script: list[tuple[str, int, int]]) -> None:
    timeline, plain = Timeline(), list[Event]()
    for move, first, second in script:
        if move == "add":
            new = event(str(first), second, id=f"e{first}")
            assert timeline.add(new) == all(each.id != new.id for each in plain)
            plain = sorted(
                [*plain, new] if all(e.id != new.id for e in plain) else plain, key=lambda e: e.time
            )
        elif move == "expire":
            ids = timeline.expired(Retention(first, second), 5)
            plain = [each for each in plain if each.time >= 5 - first]
            plain = plain[max(len(plain) - second, 0) :]
            timeline.drop(ids)
        else:
            gone = [each.id for each in timeline.select(first, None)]
            assert timeline.drop(gone) == len(gone)
            plain = [each for each in plain if each.time < first]
        assert timeline.select(None, None) == plain


def test_it_is_all_there_after_opening_again(tmp_path: Path) -> None:
    first = disk(tmp_path)
    told = [event(str(k), k) for k in range(5)]
    for each in told:
        first.add_event(each)
    first.put("a", b"1")
    first.append("l", b"1")
    first.close()
    again = disk(tmp_path)
    assert again.events() == told and again.get("a") == b"1" and again.append("l", b"2") == 2
    assert not again.add_event(told[0])
    again.check()
    again.close()


def test_the_file_tells_nothing(tmp_path: Path) -> None:
    """Neither items, types, ids, names of records nor values stand in the files, before and after a checkpoint."""
    words = [b"tt0133093", b"purchase", b"event-id-7", b"consent", b"participation", b"hidden value"]
    store = disk(tmp_path)
    store.add_event(event("tt0133093", 1.0, type="purchase", id="event-id-7"))
    store.put("consent", b"hidden value")
    store.append("participation", b"hidden value")
    during = b"".join(path.read_bytes() for path in tmp_path.glob(f"{DATABASE}*"))
    store.close()
    after = (tmp_path / DATABASE).read_bytes()
    for word in words:
        assert word not in during and word not in after
    assert (tmp_path / DATABASE).stat().st_mode & 0o077 == 0


def test_lengths_come_in_classes() -> None:
    sealer = Sealer(bytes(32))
    sizes = {len(sealer.seal("events", b"k", bytes(n))) for n in range(125)}
    assert len(sizes) == 1
    assert len({len(sealer.seal("events", b"k", bytes(n))) for n in range(3000, 4000)}) == 1


@given(st.binary(max_size=300), st.binary(max_size=20), st.integers(0, 10_000), st.integers(0, 7))
def test_a_sealed_row_opens_only_whole_and_in_its_place(
    text: bytes, row: bytes, place: int, bit: int
) -> None:
    sealer = Sealer(bytes(32))
    sealed = sealer.seal("events", row, text)
    assert sealer.open("events", row, sealed) == text
    broken = bytearray(sealed)
    broken[place % len(sealed)] ^= 1 << bit
    attempts = [("records", row, sealed), ("events", row + b"x", sealed), ("events", row, bytes(broken))]
    for table, key, data in [*attempts, ("events", row, sealed[: place % len(sealed)])]:
        with pytest.raises(StoreCorrupt):
            sealer.open(table, key, data)
    with pytest.raises(StoreCorrupt):
        Sealer(bytes(31) + b"x").open("events", row, sealed)


def test_a_second_process_waits_and_is_told(tmp_path: Path) -> None:
    store = disk(tmp_path)
    code = (
        "import sys; from pathlib import Path; import fedrec_client.store.sqlite as s; s.WAIT_SECONDS = 0.2\n"
        "from fedrec.core.errors import StoreLocked\n"
        "try: s.SqliteStore.open(Path(sys.argv[1]))\n"
        "except StoreLocked as error: print(error)"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "another process holds the store" in seen.stdout
    store.close()
    seen = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert seen.stdout == ""


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    store = disk(tmp_path)
    store.close()
    raw = sqlite3.connect(tmp_path / DATABASE)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(StoreError, match="update the app"):
        disk(tmp_path)
    assert (tmp_path / DATABASE).read_bytes() == before


def test_another_key_is_not_a_damaged_file(tmp_path: Path) -> None:
    store = disk(tmp_path)
    store.add_event(event())
    store.close()
    before = (tmp_path / DATABASE).read_bytes()
    key = (tmp_path / "store.key").read_bytes()
    (tmp_path / "store.key").write_bytes(Held.fresh().to_bytes())
    for repair in (False, True):
        with pytest.raises(StoreLocked, match="another key"):
            disk(tmp_path, repair=repair)
    assert (tmp_path / DATABASE).read_bytes() == before
    (tmp_path / "store.key").write_bytes(key)
    again = disk(tmp_path)
    assert len(again.events()) == 1
    again.close()
