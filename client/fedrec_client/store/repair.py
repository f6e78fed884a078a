"""What is sound in a damaged store, copied into a new one; the damaged file stays aside for whoever may want it.

Rows are asked for one by one, so that a broken page costs the rows on it and no others. How many were lost is
told by the index, by gaps in the numbering and by what cannot be opened, whichever says most: an upper bound. Logs
keep their sound entries in order, chained anew, and what was lost is itself noted in the log "repairs": whoever
counts a privacy budget by a log must treat a loss as the worst (see `participation`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fedrec.errors import DataError, StoreCorrupt, StoreError
from fedrec_client.events import Event
from fedrec_client.store.chains import Head, entry_text, parse_entry
from fedrec_client.store.schema import TABLES, migrate, write_head
from fedrec_client.store.sealing import Sealer

REPAIRS = "repairs"
#: So many numbers in a row that cannot be read end the search; a broken inner page hides fewer rows.
_MAX_FAILURES = 20_000


def rescue(path: Path, sealer: Sealer, check: bytes) -> dict[str, int]:
    """Put a sound store in the place of a damaged one.

    Args:
        path: of the database.
        sealer: of the store.
        check: [16] that this is the store's key.

    Returns:
        How many rows were kept and, at most, lost, by table.
    """
    from fedrec_client.store.sqlite import connect

    fresh = path.with_name(f".{path.name}.repair")
    _remove(fresh)
    kept: dict[str, list[tuple[bytes, bytes]]] = {table: [] for table in TABLES}
    lost = dict.fromkeys(TABLES, 0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damaged:
        for table in TABLES:
            rows = list(_rows(damaged, table))
            for _, key, sealed in rows:
                if (text := _opened(sealer, table, key, sealed)) is not None:
                    kept[table].append((key, text))
            lost[table] = _expected(damaged, table, [number for number, _, _ in rows]) - len(kept[table])
        before = _heads(damaged, sealer)
    new = connect(fresh)
    try:
        migrate(new, sealer)
        new.execute("BEGIN IMMEDIATE")
        for table in ("events", "records"):
            for key, text in kept[table]:
                _write(new, sealer, table, key, text)
        if not any(key == sealer.name("records", "\0key") for key, _ in kept["records"]):
            text = len(b"\0key").to_bytes(2, "big") + b"\0key" + check
            _write(new, sealer, "records", sealer.name("records", "\0key"), text)
        counts = _write_logs(new, sealer, [text for _, text in kept["entries"]])
        missed = (
            1 if before is None else sum(head.count - counts.get(name, 0) for name, head in before.items())
        )
        lost["entries"] = max(lost["entries"], missed)
        note = {"lost": lost, "kept": {table: len(rows) for table, rows in kept.items()}}
        _append(new, sealer, REPAIRS, counts.get(REPAIRS, 0), json.dumps(note, sort_keys=True).encode())
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        new.close()
    _set_aside(path)
    fresh.replace(path)
    return {f"kept_{table}": len(rows) for table, rows in kept.items()} | {
        f"lost_{table}": number for table, number in lost.items()
    }


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, key and sealed text of each row that can be read."""
    query = f"SELECT row, key, sealed FROM {table} WHERE row > ? ORDER BY row LIMIT 1"
    number, failures = 0, 0
    while failures < _MAX_FAILURES:
        try:
            row = connection.execute(query, (number,)).fetchone()
        except sqlite3.Error:
            number, failures = number + 1, failures + 1
            continue
        if row is None:
            return
        if row[0] <= number:  # a damaged page leads round in a circle
            return
        number, failures = row[0], 0
        if all(isinstance(part, bytes) for part in row[1:]):
            yield row


def _expected(connection: sqlite3.Connection, table: str, numbers: list[int]) -> int:
    """At most so many rows there were: as numbers from the first to the last, or as keys in the index."""
    spans = [max(numbers) - min(numbers) + 1] if numbers else [0]
    try:
        query = f"SELECT count(key) FROM {table} INDEXED BY sqlite_autoindex_{table}_1"
        spans.append(int(connection.execute(query).fetchone()[0]))
    except (sqlite3.Error, TypeError):
        spans.append(len(numbers) + 1)
    return max(spans)


def _opened(sealer: Sealer, table: str, key: bytes, sealed: bytes) -> bytes | None:
    """The text of a row; None for one that is not sound."""
    try:
        text = sealer.open(table, key, sealed)
        if table == "events":
            Event.parse(text)
    except (StoreCorrupt, DataError):
        return None
    return text


def _heads(connection: sqlite3.Connection, sealer: Sealer) -> dict[str, Head] | None:
    """The ends of all logs; None when one of them cannot be read."""
    try:
        rows = connection.execute("SELECT key, sealed FROM heads").fetchall()
        return dict(Head.parse(sealer.open("heads", *row)) for row in rows)
    except (sqlite3.Error, StoreCorrupt):
        return None


def _write(connection: sqlite3.Connection, sealer: Sealer, table: str, key: bytes, text: bytes) -> None:
    connection.execute(
        f"INSERT OR IGNORE INTO {table} (key, sealed) VALUES (?, ?)", (key, sealer.seal(table, key, text))
    )


def _write_logs(connection: sqlite3.Connection, sealer: Sealer, texts: list[bytes]) -> dict[str, int]:
    """Entries in the order of their numbers, chained anew; how many there are by log."""
    logs: dict[str, dict[int, bytes]] = {}
    for text in texts:
        name, before, value = parse_entry(text)
        logs.setdefault(name, {})[before.count] = value
    for name, values in logs.items():
        for count, number in enumerate(sorted(values)):
            _append(connection, sealer, name, count, values[number])
    return {name: len(values) for name, values in logs.items()}


def _append(connection: sqlite3.Connection, sealer: Sealer, name: str, count: int, value: bytes) -> None:
    row = connection.execute(
        "SELECT sealed FROM heads WHERE key = ?", (sealer.name("heads", name),)
    ).fetchone()
    before = (
        Head() if row is None else Head.parse(sealer.open("heads", sealer.name("heads", name), row[0]))[1]
    )
    if before.count != count:
        raise StoreError(f"log {name!r} is being repaired twice: report this")
    after = before.then(value)
    key = sealer.name("entries", f"{name}\0{after.count}")
    _write(connection, sealer, "entries", key, entry_text(name, before, value))
    write_head(connection, sealer, name, after)


def _set_aside(path: Path) -> None:
    """The damaged file and what belongs to it, under names that nothing opens."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(path.with_name(f"{path.name}.damaged-{number}{suffix}"))


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
