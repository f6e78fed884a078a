"""Rows of a store's file: how contents become sealed rows, and sealed rows contents again.

    events    key of the id        an event
    records   key of the name      name and value
    entries   key of log, number   log, number and value
    root      the store's id       see `root`

Rows are numbered from 1 without gaps; what is deleted leaves no gap, because a deletion writes the file anew. What
the file shows without the key: how many rows there are, about how long they are, and in which order they came.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from fedrec.core.errors import DataError, StoreCorrupt
from fedrec_client.store._contents import Contents
from fedrec_client.store._root import TABLES, Root, Sum, stale
from fedrec_client.store._sealing import Sealer
from fedrec_client.store.events import Event
from fedrec_client.store.timeline import Timeline

SCHEMA = 3
Row = tuple[int, bytes, bytes]
_INSERT = "INSERT INTO {} (row, key, sealed) VALUES (?, ?, ?)"


def make_tables(connection: sqlite3.Connection) -> None:
    """In an empty database, inside a transaction."""
    for table in TABLES:
        connection.execute(
            f"CREATE TABLE {table} (row INTEGER PRIMARY KEY, key BLOB NOT NULL, sealed BLOB NOT NULL)"
        )
    connection.execute(
        "CREATE TABLE root (key BLOB PRIMARY KEY NOT NULL, sealed BLOB NOT NULL) WITHOUT ROWID"
    )
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def write_all(
    connection: sqlite3.Connection, sealer: Sealer, store: bytes, contents: Contents, counter: int
) -> Root:
    """Everything into an empty database, in one transaction; its root."""
    root = Root(counter)
    connection.execute("BEGIN")
    make_tables(connection)
    for table, texts in _texts(contents):
        rows = [
            (number, *sealed_row(sealer, table, name, text))
            for number, (name, text) in enumerate(texts, start=1)
        ]
        connection.executemany(_INSERT.format(table), rows)
        sums = Sum()
        for row in rows:
            sums = sums.add(sealer.digest(table, *row))
        root = root.with_sum(table, sums)
    write_root(connection, root, sealer, store)
    connection.execute("COMMIT")
    return root


def read_all(connection: sqlite3.Connection, sealer: Sealer, root: Root, what: str) -> Contents:
    """Everything in a database that is exactly what its root says.

    Raises:
        StoreCorrupt: it is not.
    """
    texts: dict[str, list[bytes]] = {}
    for table in TABLES:
        sums, texts[table] = Sum(), []
        for number, key, sealed in connection.execute(f"SELECT row, key, sealed FROM {table} ORDER BY row"):
            if not (isinstance(key, bytes) and isinstance(sealed, bytes)):
                raise stale(what)
            sums = sums.add(sealer.digest(table, number, key, sealed))
            texts[table].append(sealer.open(table, key, sealed))
        if sums != root.sums[table]:
            raise stale(what)
    return contents_of(texts, what)


def contents_of(texts: dict[str, list[bytes]], what: str) -> Contents:
    """Of opened rows; entries of a log stand in the order of their numbers.

    Raises:
        StoreCorrupt: a newer client wrote them.
    """
    try:
        timeline = Timeline.of(Event.parse(text) for text in texts["events"])
    except DataError as error:
        raise StoreCorrupt(f"{what} holds what is {error}: update the app") from error
    logs: dict[str, dict[int, bytes]] = {}
    for text in texts["entries"]:
        (log, number), value = _split(text)
        logs.setdefault(log, {})[number] = value
    return Contents(
        timeline,
        dict(_split(text) for text in texts["records"]),
        {log: [values[number] for number in sorted(values)] for log, values in logs.items()},
    )


def event_row(event: Event) -> tuple[str, bytes]:
    """Name and text."""
    return event.id, event.to_bytes()


def record_row(name: str, value: bytes) -> tuple[str, bytes]:
    """Name and text."""
    return name, _join(name, value)


def entry_row(log: str, number: int, value: bytes) -> tuple[str, bytes]:
    """Name and text."""
    return f"{log}\0{number}", _join([log, number], value)


def sealed_row(sealer: Sealer, table: str, name: str, text: bytes) -> tuple[bytes, bytes]:
    """Key and sealed text."""
    key = sealer.name(table, name)
    return key, sealer.seal(table, key, text)


def insert(connection: sqlite3.Connection, table: str, row: Row) -> None:
    """A row more."""
    connection.execute(_INSERT.format(table), row)


def write_root(connection: sqlite3.Connection, root: Root, sealer: Sealer, store: bytes) -> None:
    """In the place of the earlier one."""
    connection.execute(
        "INSERT OR REPLACE INTO root (key, sealed) VALUES (?, ?)", (store, root.seal(sealer, store))
    )


def _texts(contents: Contents) -> Iterator[tuple[str, Iterator[tuple[str, bytes]]]]:
    yield "events", map(event_row, contents.timeline.arrivals())
    yield "records", (record_row(*record) for record in contents.records.items())
    yield (
        "entries",
        (
            entry_row(log, number, value)
            for log, values in contents.logs.items()
            for number, value in enumerate(values, start=1)
        ),
    )


def _join(front: Any, value: bytes) -> bytes:
    head = json.dumps(front).encode()
    return len(head).to_bytes(2, "big") + head + value


def _split(text: bytes) -> tuple[Any, bytes]:
    size = int.from_bytes(text[:2], "big")
    return json.loads(text[2 : 2 + size]), text[2 + size :]
