"""What the device's store costs: acknowledged events, opening, reading, deleting, beside SQLite without seals.

python -m benchmarks.device_store
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.store.events import Event, EventType

EVENTS = 3_000
MANY = 50_000


def main() -> None:
    """Print medians, 95th percentiles and ratios."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(folder / "sealed") as store:
            ours = each(lambda k: store.add_event(event(k)))
        peer = each(plain(folder / "plain.db"))
        print(f"acknowledged event, sealed, synchronous=FULL  {told(ours)}   target 1.0 ms")
        print(f"  plain INSERT of the same JSON, same settings {told(peer)}   ratio {ratio(ours, peer):.2f}")
        for number in (2_000, MANY):
            where = folder / str(number)
            with opened(where) as store, store.transaction():
                for k in range(number):
                    store.add_event(event(k))
            start = time.perf_counter()
            with opened(where) as store:
                ready = time.perf_counter()
                store.events()
                first = time.perf_counter()
                store.events()
                again = time.perf_counter()
                store.delete_events(item="tt0000007")
                deleted = time.perf_counter()
            size = (where / "events.db").stat().st_size
            print(
                f"{number:6,} events: open {(ready - start) * 1e3:.1f} ms, "
                f"first read {(first - ready) * 1e3:.1f} ms, "
                f"again {(again - first) * 1e3:.2f} ms, one item deleted in {(deleted - again) * 1e3:.0f} ms, "
                f"{size / number:.0f} bytes each"
            )


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[SqliteStore]:
    """A store of a folder."""
    vault = FileVault(folder)
    if not folder.exists():
        folder.mkdir()
        vault = FileVault.create(folder)
    store = SqliteStore.open(folder, vault)
    yield store
    store.close()


def plain(path: Path) -> Callable[[int], None]:
    """The peer: the same JSON in a table without seals."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (id TEXT UNIQUE, text BLOB)")

    def add(k: int) -> None:
        made = event(k)
        connection.execute("INSERT INTO events VALUES (?, ?)", (made.id, made.to_bytes()))

    return add


def event(k: int) -> Event:
    """One like an app's."""
    return Event(EventType.PLAY, f"tt{k % 9000:07d}", 1.8e9 + k, context={"place": k % 20})


def each(call: Callable[[int], object]) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for k in range(EVENTS):
        start = time.perf_counter()
        call(k)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def told(times: list[float]) -> str:
    """Median and 95th percentile."""
    return f"median {statistics.median(times):.3f} ms, p95 {sorted(times)[int(len(times) * 0.95)]:.3f} ms"


def ratio(ours: list[float], peer: list[float]) -> float:
    """Of the medians."""
    return statistics.median(ours) / statistics.median(peer)


if __name__ == "__main__":
    main()
