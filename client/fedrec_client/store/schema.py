"""Tables of a store, and the steps from one schema to the next.

A step runs in one transaction with the new number, so a crash leaves the old schema or the new one. What the file
shows without the key: how many rows there are, about how long they are, and in which order they came.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from fedrec.errors import StoreError
from fedrec_client.store.chains import Head, heads_of
from fedrec_client.store.sealing import Sealer

TABLES = ("events", "records", "entries")


def migrate(connection: sqlite3.Connection, sealer: Sealer, upto: int | None = None) -> None:
    """Bring a store to the newest schema.

    Args:
        connection: in autocommit mode.
        sealer: of the store.
        upto: stop at this schema; for tests of older ones.

    Raises:
        StoreError: the store was written by a newer client.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > len(STEPS):
        raise StoreError(
            f"the store has schema {found}, this client knows {len(STEPS)}: update the app; nothing was touched"
        )
    for number, step in enumerate(STEPS[:upto], start=1):
        if number > found:
            connection.execute("BEGIN IMMEDIATE")
            try:
                step(connection, sealer)
                connection.execute(f"PRAGMA user_version = {number}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _tables(connection: sqlite3.Connection, _: Sealer) -> None:
    """1: events, named records, logs."""
    for table in TABLES:
        connection.execute(
            f"CREATE TABLE {table} (row INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, "
            "sealed BLOB NOT NULL)"
        )


def _heads(connection: sqlite3.Connection, sealer: Sealer) -> None:
    """2: the end of each log, so that entries cut off at the end are missed."""
    connection.execute("CREATE TABLE heads (key BLOB PRIMARY KEY NOT NULL, sealed BLOB NOT NULL)")
    rows = connection.execute("SELECT key, sealed FROM entries ORDER BY row")
    for name, head in heads_of(sealer.open("entries", *row) for row in rows).items():
        write_head(connection, sealer, name, head)


def write_head(connection: sqlite3.Connection, sealer: Sealer, name: str, head: Head) -> None:
    """Put the end of a log in its place."""
    key = sealer.name("heads", name)
    sealed = sealer.seal("heads", key, head.to_bytes(name))
    connection.execute("INSERT OR REPLACE INTO heads (key, sealed) VALUES (?, ?)", (key, sealed))


STEPS: tuple[Callable[[sqlite3.Connection, Sealer], None], ...] = (_tables, _heads)
SCHEMA = len(STEPS)
