"""The store on disk: one SQLite file, every row sealed, what was acknowledged there for good.

Write-ahead log with `synchronous=FULL`: an acknowledged write has reached the disk, so it outlives a killed process
and a power cut; a full disk or a broken write leaves the state before it. One process holds a store at a time (the
second waits a little, then StoreLocked); any number of threads share it. Events are decrypted once and then
answered from memory. Out of scope: sealing (`sealing`), where the key is (`vault`), repairs (`repair`).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

from fedrec.errors import DataError, StoreCorrupt, StoreError, StoreFull, StoreLocked
from fedrec_client.events import Event, EventType
from fedrec_client.store.base import Receipt, Retention
from fedrec_client.store.chains import Head, broken, entry_text, parse_entry
from fedrec_client.store.schema import SCHEMA, TABLES, migrate, write_head
from fedrec_client.store.sealing import Sealer
from fedrec_client.store.timeline import Timeline
from fedrec_client.store.vault import Vault, check_value, open_vault

log = logging.getLogger(__name__)

DATABASE = "events.db"
WAIT_SECONDS = 2.0
#: The write-ahead log starts over after so many pages: little room is lost to it.
_LOG_PAGES = 64
#: A record by which the store knows its key.
_CHECK = "\0key"
_FULL = {sqlite3.SQLITE_FULL}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CANNOT_WRITE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


class SqliteStore:
    """See `Store`. Build it with `open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, vault: Vault, sealer: Sealer) -> None:
        self.path = path
        self._connection, self._vault, self._sealer = connection, vault, sealer
        self._lock = threading.RLock()
        self._timeline: Timeline | None = None
        self._heads: dict[str, Head] | None = None
        self._depth = 0
        self._closed = ""

    @classmethod
    def open(cls, folder: Path, vault: Vault | None = None, *, repair: bool = False) -> Self:
        """The store of a folder; a new one when there is none.

        Args:
            folder: for its owner only.
            vault: holds the key; None: as good as this device allows.
            repair: when rows are damaged, copy what is sound into a new file and keep the damaged one aside.

        Raises:
            StoreLocked: the key is not there or not the store's, or another process holds the store.
            StoreCorrupt: the file is damaged, and repair is False.
            StoreFull: no room for the little that opening writes.
        """
        vault = vault or open_vault(folder)
        key = vault.key()
        path = folder / DATABASE
        try:
            return cls._opened(path, vault, key, check=repair)
        except StoreCorrupt:
            if not repair:
                raise
        from fedrec_client.store.repair import rescue

        lost = rescue(path, Sealer(key), check_value(key))
        log.warning("store %s was damaged: %s", folder, lost)
        return cls._opened(path, vault, key, check=True)

    @classmethod
    def _opened(cls, path: Path, vault: Vault, key: bytes, check: bool) -> Self:
        connection = connect(path)
        try:
            store = cls(path, connection, vault, Sealer(key))
            with translated():
                store._check_key()
                migrate(connection, store._sealer)
            if store.get(_CHECK) is None:
                store.put(_CHECK, check_value(key))
            if check:
                store.check()
        except BaseException:
            connection.close()
            raise
        return store

    def add_event(self, event: Event) -> bool:
        """See `Store`."""
        with self._writing():
            if not self._insert("events", event.id, event.to_bytes(), "INSERT OR IGNORE"):
                return False
            if self._timeline is not None:
                self._timeline.add(event)
            return True

    def events(
        self, *, since: float | None = None, types: Collection[EventType] | None = None
    ) -> list[Event]:
        """See `Store`."""
        with self._used():
            return self._loaded().select(since, types)

    def get(self, name: str) -> bytes | None:
        """See `Store`."""
        with self._used():
            key = self._sealer.name("records", name)
            row = self._connection.execute("SELECT sealed FROM records WHERE key = ?", (key,)).fetchone()
            return None if row is None else _split(self._sealer.open("records", key, row[0]))[1]

    def put(self, name: str, value: bytes) -> None:
        """See `Store`."""
        with self._writing():
            self._insert("records", name, _join(name, value), "INSERT OR REPLACE")

    def remove(self, name: str) -> None:
        """See `Store`."""
        with self._writing():
            self._connection.execute(
                "DELETE FROM records WHERE key = ?", (self._sealer.name("records", name),)
            )

    def names(self, prefix: str = "") -> list[str]:
        """See `Store`."""
        with self._used():
            texts = self._texts("records")
            return sorted(
                name
                for name in (_split(text)[0] for text in texts)
                if name.startswith(prefix) and name != _CHECK
            )

    def append(self, log: str, value: bytes) -> int:
        """See `Store`."""
        with self._writing():
            before = self._ends().get(log, Head())
            after = before.then(value)
            self._insert("entries", f"{log}\0{after.count}", entry_text(log, before, value))
            write_head(self._connection, self._sealer, log, after)
            self._ends()[log] = after
            return after.count

    def entries(self, log: str) -> list[bytes]:
        """See `Store`."""
        with self._used():
            end, head, values = self._ends().get(log, Head()), Head(), []
            for number in range(1, end.count + 1):
                key = self._sealer.name("entries", f"{log}\0{number}")
                row = self._connection.execute("SELECT sealed FROM entries WHERE key = ?", (key,)).fetchone()
                if row is None:
                    raise broken(log)
                name, before, value = parse_entry(self._sealer.open("entries", key, row[0]))
                if (name, before) != (log, head):
                    raise broken(log)
                head = head.then(value)
                values.append(value)
            if head != end:
                raise broken(log)
            return values

    def logs(self) -> list[str]:
        """See `Store`."""
        with self._used():
            return sorted(self._ends())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Store`."""
        with self._writing():
            yield

    def expire(self, retention: Retention, now: float) -> int:
        """See `Store`."""
        with self._writing():
            return self._drop(self._loaded().expired(retention, now))

    def delete_events(self, since: float | None = None) -> int:
        """See `Store`."""
        with self._writing():
            return self._drop([event.id for event in self._loaded().select(since, None)])

    def destroy(self, now: float) -> Receipt:
        """See `Store`. The key goes first: what is left behind by a crash after that nobody can read."""
        with self._used():
            counts = {table: self._count(table) for table in ("events", "records", "entries")}
            self._vault.destroy()
            self._connection.close()
            self._closed = "was destroyed"
            for path in self.path.parent.glob(f"{self.path.name}*"):
                path.unlink(missing_ok=True)
        return Receipt(
            secrets.token_hex(8),
            now,
            counts["events"],
            counts["records"] - 1,
            counts["entries"],
            key_destroyed=True,
        )

    def check(self) -> None:
        """Read everything once.

        Raises:
            StoreCorrupt: something is damaged.
        """
        with self._used():
            (state,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise StoreCorrupt(f"store {self.path} is damaged ({state!s:.80}): open it with repair=True")
            self._loaded()
            self.names()
            for name in self._ends():
                self.entries(name)

    def describe(self) -> dict[str, Any]:
        """See `Store`."""
        with self._used():
            size = sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*"))
            return {
                "kind": "sqlite",
                "schema": SCHEMA,
                "key": self._vault.describe(),
                "bytes": size,
                "events": self._count("events"),
                "records": self._count("records") - 1,
                "entries": self._count("entries"),
            }

    def close(self) -> None:
        """See `Store`."""
        with self._lock:
            if not self._closed:
                self._connection.close()
                self._closed = "is closed"

    def _check_key(self) -> None:
        """A store knows its key: a wrong one must not look like a damaged file."""
        if self._connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            return
        name = self._sealer.name("records", _CHECK)
        known = self._connection.execute("SELECT 1 FROM records WHERE key = ?", (name,)).fetchone()
        if known is None and any(self._count(table) for table in TABLES):
            raise StoreLocked(
                f"store {self.path} was written under another key: restore the key that made it"
            )

    def _insert(self, table: str, name: str, text: bytes, how: str = "INSERT") -> int:
        key = self._sealer.name(table, name)
        sealed = self._sealer.seal(table, key, text)
        return self._connection.execute(
            f"{how} INTO {table} (key, sealed) VALUES (?, ?)", (key, sealed)
        ).rowcount

    def _texts(self, table: str) -> Iterator[bytes]:
        for key, sealed in self._connection.execute(
            f"SELECT key, sealed FROM {table} ORDER BY row"
        ).fetchall():
            yield self._sealer.open(table, key, sealed)

    def _loaded(self) -> Timeline:
        if self._timeline is None:
            try:
                self._timeline = Timeline.of(Event.parse(text) for text in self._texts("events"))
            except DataError as error:
                raise StoreCorrupt(f"store {self.path} holds what is {error}: update the app") from error
        return self._timeline

    def _ends(self) -> dict[str, Head]:
        if self._heads is None:
            rows = self._connection.execute("SELECT key, sealed FROM heads").fetchall()
            self._heads = dict(Head.parse(self._sealer.open("heads", *row)) for row in rows)
        return self._heads

    def _drop(self, ids: Collection[str]) -> int:
        keys = [(self._sealer.name("events", each),) for each in ids]
        self._connection.executemany("DELETE FROM events WHERE key = ?", keys)
        return self._loaded().drop(ids)

    def _count(self, table: str) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock, translated():
            if self._closed:
                raise StoreError(f"store {self.path} {self._closed}: open it again")
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; a call inside another's joins it."""
        with self._used():
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._connection.execute("COMMIT")
            except BaseException:
                if self._depth == 1:
                    self._timeline, self._heads = None, None
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1


def connect(path: Path) -> sqlite3.Connection:
    """The file, held by this process alone.

    Raises:
        StoreError: see `translated`.
    """
    with translated():
        connection = sqlite3.connect(
            path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
            path.chmod(0o600)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """SQLite's errors as the SDK's own."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        primary = code & 0xFF
        if primary in _FULL:
            raise StoreFull(
                "no room for the store: what was acknowledged is kept; free some space"
            ) from error
        if primary in _BUSY:
            raise StoreLocked("another process holds the store: close it there first") from error
        if primary in _CORRUPT:
            raise StoreCorrupt(f"the store is damaged ({error}): open it with repair=True") from error
        if primary in _CANNOT_WRITE:
            raise StoreFull(
                f"the store cannot be written ({error}): what was acknowledged is kept; check the disk"
            ) from error
        raise StoreError(f"the store cannot be used ({error}): report this") from error


def _join(name: str, value: bytes) -> bytes:
    front = name.encode()
    return len(front).to_bytes(2, "big") + front + value


def _split(text: bytes) -> tuple[str, bytes]:
    size = int.from_bytes(text[:2], "big")
    return text[2 : 2 + size].decode(), text[2 + size :]
