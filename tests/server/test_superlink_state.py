"""Messages that SuperLink deleted are in none of its files, though SuperLink goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fedrec.core.errors import FederationError
from fedrec_server.federation.superlink_state import database_of, drop_deleted

SECRET = b"a masked vector and its shares " * 200


def as_superlink(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_deleted_messages_are_gone_beside_a_superlink_that_works(tmp_path: Path) -> None:
    database = database_of(tmp_path)
    superlink = as_superlink(database)
    superlink.execute("CREATE TABLE object (id INTEGER PRIMARY KEY, content BLOB)")
    superlink.executemany("INSERT INTO object VALUES (?, ?)", [(k, SECRET) for k in range(50)])
    superlink.execute("INSERT INTO object VALUES (99, ?)", (b"still waited for",))
    superlink.execute("DELETE FROM object WHERE id < 50")
    assert SECRET[:31] in on_disk(tmp_path), "SQLite leaves deleted rows readable"
    drop_deleted(database)
    assert SECRET[:31] not in on_disk(tmp_path)
    assert superlink.execute("SELECT content FROM object").fetchall() == [(b"still waited for",)]
    superlink.execute("INSERT INTO object VALUES (100, ?)", (b"goes on",))
    superlink.close()


def test_a_database_that_stays_busy_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec_server.federation.superlink_state.BUSY_SECONDS", 0.2)
    database = database_of(tmp_path)
    superlink = as_superlink(database)
    superlink.execute("CREATE TABLE object (content BLOB)")
    superlink.execute("BEGIN IMMEDIATE")
    with pytest.raises(FederationError, match="federation down"):
        drop_deleted(database)
    superlink.close()


def test_no_database_is_no_problem(tmp_path: Path) -> None:
    drop_deleted(database_of(tmp_path))
    assert not list(tmp_path.iterdir())
