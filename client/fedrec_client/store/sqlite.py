"""The store on disk: one SQLite file, every row sealed, what was acknowledged there for good.

An acknowledged write has reached the disk, so it outlives a killed process and a power cut; a full disk or a broken
write leaves the state before it. A deletion writes the file anew under a new key (`renewal`): what was deleted opens
nowhere any more once the call returns. Every change is in the file's root (`root`), and every change but an event's
in the vault's counter, before the call returns. One process holds a store at a time (the second waits a little, then
StoreLocked); any number of threads share it. Everything is read and checked when the store is opened and answered
from memory afterwards. Out of scope: sealing (`sealing`), where the key is (`vault`), repairs (`repair`).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fedrec.core.errors import StoreCorrupt, StoreError
from fedrec.core.files import private_folder, sweep
from fedrec_client.store import _renewal as renewal
from fedrec_client.store._contents import AnswersFromMemory, Contents
from fedrec_client.store._database import DATABASE, connect, guard, translated, translated_files
from fedrec_client.store._held import Held
from fedrec_client.store._lock import FolderLock
from fedrec_client.store._root import Root, stale
from fedrec_client.store._rows import (
    SCHEMA,
    entry_row,
    event_row,
    insert,
    read_all,
    record_row,
    sealed_row,
    write_root,
)
from fedrec_client.store._sealing import KEY_BYTES, Sealer
from fedrec_client.store._vault import KEY_FILE, VAULT_FILE, Vault, open_vault
from fedrec_client.store.base import Receipt, Retention
from fedrec_client.store.events import Event
from fedrec_client.store.timeline import Timeline

log = logging.getLogger(__name__)

WAIT_SECONDS = 2.0


class SqliteStore(AnswersFromMemory):
    """See `Store`. Build it with `open`."""

    def __init__(self, folder: Path, vault: Vault, held: Held, lock: FolderLock) -> None:
        self.path = folder / DATABASE
        self._folder, self._vault, self._held, self._file_lock = folder, vault, held, lock
        self._lock = threading.RLock()
        self._depth, self._closed = 0, ""
        #: How to take back in memory what a transaction that fails has done.
        self._undo: list[Callable[[], object]] = []
        self._renewing = self._counts = False

    @classmethod
    def open(
        cls, folder: Path, vault: Vault | None = None, *, repair: bool = False, passphrase: str | None = None
    ) -> Self:
        """The store of a folder; a new one when there is none. What a crash left of a deletion is finished first.

        Args:
            folder: for its owner only; made so when it is not.
            vault: holds the key; None: the folder's, or a new one as good as this device allows.
            passphrase: wraps the key where no vault is given.
            repair: when the store is damaged, or is not the one that was left here, keep what is sound in a new file.

        Raises:
            StoreLocked: the key is not there or not the store's, or another process holds the store.
            StoreCorrupt: the file is damaged, or rows or all of it are of an older copy, and repair is False.
            StoreFull: no room for the little that opening writes.
            StoreError: the folder cannot be used, e.g. because a file in it is a symbolic link.
        """
        with translated_files():
            if private_folder(folder):
                log.warning(
                    "others could look into store folder %s: it is its owner's alone from now on", folder
                )
            lock = FolderLock.take(folder, WAIT_SECONDS)
        try:
            vault = vault or open_vault(folder, passphrase)
            store = cls(folder, vault, vault.read(), lock)
            with translated(), translated_files():
                store._begin(repair)
        except BaseException:
            lock.release()
            raise
        return store

    def _begin(self, repair: bool) -> None:
        guard(self.path)
        for name in (KEY_FILE, VAULT_FILE):
            sweep(self._folder / name)
        renewal.settle(self._folder, self._held)
        if not self.path.exists() and self._held.counter == 0:
            root = renewal.stage(self._folder, self._held.keys[0], self._held.store, Contents(), 1)
            self._held = renewal.complete(self._folder, self._vault, self._held, self._held.keys[0], root)
        try:
            self._read()
        except StoreCorrupt:
            if not repair:
                raise
            from fedrec_client.store.repair import rescue

            contents, counter, lost = rescue(self.path, self._held)
            log.warning("store %s was damaged: %s", self._folder, lost)
            key = secrets.token_bytes(KEY_BYTES)
            root = renewal.begin(self._folder, self._vault, self._held, key, contents, counter)
            self._held = renewal.complete(self._folder, self._vault, self._held, key, root)
            self._read()

    def _read(self) -> None:
        """Everything, checked against the root; the vault is brought up to what was found."""
        if not self.path.exists():
            raise stale(f"the database of store {self._folder} is gone")
        connection = connect(self.path, WAIT_SECONDS)
        try:
            root, key = renewal.find_root(connection, self._held, f"store {self.path}")
            self._contents = read_all(connection, Sealer(key), root, f"store {self.path}")
            self._work_on(connection, key, root)
        except BaseException:
            connection.close()
            raise
        if len(self._held.keys) > 1 or root.counter != self._held.counter:
            # A crash came between the database and the vault, at the end of a change or of a deletion.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            try:
                self._tell_vault(self._held.settled(key, root.counter))
            except StoreError as error:
                if len(self._held.keys) > 1:  # what was deleted would still open under the older one
                    connection.close()
                    raise
                log.warning("the counter of store %s is behind: %s", self._folder, error)

    def _work_on(self, connection: sqlite3.Connection, key: bytes, root: Root) -> None:
        """A file whose contents are in memory."""
        sealer = Sealer(key)
        rows = connection.execute("SELECT row, key, sealed FROM records").fetchall()
        self._connection, self._sealer, self._root = connection, sealer, root
        self._record_rows = {row[1]: (row[0], sealer.digest("records", *row)) for row in rows}

    def add_event(self, event: Event) -> bool:
        """See `Store`."""
        with self._writing():
            timeline = self._contents.timeline
            if event.id in timeline:
                return False
            self._add("events", *event_row(event))
            timeline.add(event)
            self._undo.append(lambda: timeline.drop([event.id]))
            return True

    def put(self, name: str, value: bytes) -> None:
        """See `Store`."""
        with self._writing():
            records, before = self._contents.records, self._contents.records.get(name)
            if before == value:
                return
            self._counts = True
            if before is None:
                self._add("records", *record_row(name, value))
                self._undo.append(lambda: records.pop(name))
            else:
                self._change_record(name, value)
                self._undo.append(lambda: records.update({name: before}))
            records[name] = bytes(value)

    def remove(self, name: str) -> None:
        """See `Store`."""
        with self._writing():
            if name in self._contents.records:
                del self._renewed().records[name]

    def append(self, log: str, value: bytes) -> int:
        """See `Store`."""
        with self._writing():
            number = len(self._contents.logs.get(log, ())) + 1
            self._counts = True
            self._add("entries", *entry_row(log, number, value))
            self._contents.logs.setdefault(log, []).append(bytes(value))
            self._undo.append(lambda: self._forget_entry(log))
            return number

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Store`."""
        with self._writing():
            yield

    def expire(self, retention: Retention, now: float) -> int:
        """See `Store`."""
        with self._writing():
            return self._drop(self._contents.timeline.expired(retention, now))

    def delete_events(self, since: float | None = None, item: str | None = None) -> int:
        """See `Store`."""
        with self._writing():
            chosen = self._contents.timeline.select(since, None)
            return self._drop([event.id for event in chosen if item in (None, event.item)])

    def erase(self, now: float, records: Mapping[str, bytes], logs: Mapping[str, Sequence[bytes]]) -> Receipt:
        """See `Store`."""
        with self._writing():
            contents = self._renewed()
            counts = len(contents.timeline), len(contents.records), contents.entries
            self._contents = Contents(
                Timeline(), dict(records), {name: list(entries) for name, entries in logs.items()}
            )
        return Receipt(secrets.token_hex(8), now, *counts, key_destroyed=True)

    def check(self) -> None:
        """Read everything from the disk once more.

        Raises:
            StoreCorrupt: something is damaged.
        """
        with self._used():
            (state,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise StoreCorrupt(f"store {self.path} is damaged ({state!s:.80}): open it with repair=True")
            read_all(self._connection, self._sealer, self._root, f"store {self.path}")

    def describe(self) -> dict[str, Any]:
        """See `Store`."""
        with self._used():
            size = sum(path.stat().st_size for path in self._folder.glob(f"{DATABASE}*"))
            return {
                "kind": "sqlite",
                "schema": SCHEMA,
                "key": self._vault.describe(),
                "older_copies": self._vault.notices,
                "bytes": size,
                "events": len(self._contents.timeline),
                "records": len(self._contents.records),
                "entries": self._contents.entries,
            }

    def close(self) -> None:
        """See `Store`."""
        with self._lock:
            if not self._closed:
                self._closed = "is closed"
                self._connection.close()
            self._file_lock.release()

    def _add(self, table: str, name: str, text: bytes) -> None:
        """A row more, in the file and in the root."""
        sums = self._root.sums[table]
        key, sealed = sealed_row(self._sealer, table, name, text)
        number = sums.count + 1
        insert(self._connection, table, (number, key, sealed))
        digest = self._sealer.digest(table, number, key, sealed)
        self._root = self._root.with_sum(table, sums.add(digest))
        if table == "records":
            self._set_record_row(key, (number, digest))

    def _change_record(self, name: str, value: bytes) -> None:
        key, sealed = sealed_row(self._sealer, "records", *record_row(name, value))
        number, before = self._record_rows[key]
        self._connection.execute("UPDATE records SET sealed = ? WHERE row = ?", (sealed, number))
        after = self._sealer.digest("records", number, key, sealed)
        self._root = self._root.with_sum("records", self._root.sums["records"].swap(before, after))
        self._set_record_row(key, (number, after))

    def _set_record_row(self, key: bytes, row: tuple[int, int]) -> None:
        earlier = dict(self._record_rows)
        self._undo.append(lambda: setattr(self, "_record_rows", earlier))
        self._record_rows[key] = row

    def _drop(self, ids: Collection[str]) -> int:
        return self._renewed().timeline.drop(ids) if ids else 0

    def _renewed(self) -> Contents:
        """The contents, to delete from: the transaction ends with a new file."""
        before = self._contents
        self._contents = before.copy()
        self._undo.append(lambda: setattr(self, "_contents", before))
        self._renewing = True
        return self._contents

    def _forget_entry(self, log: str) -> None:
        entries = self._contents.logs[log]
        entries.pop()
        if not entries:
            del self._contents.logs[log]

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
                before = self._root
                self._renewing = self._counts = False
                self._undo.append(lambda: setattr(self, "_root", before))
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._commit()
            except BaseException:
                if self._depth == 1:
                    self._take_back()
                raise
            finally:
                self._depth -= 1

    def _commit(self) -> None:
        if self._renewing:
            self._connection.execute("ROLLBACK")
            self._renew()
            return
        if len(self._undo) == 1:
            self._connection.execute("ROLLBACK")
        else:
            root = self._root.counted() if self._counts else self._root
            write_root(self._connection, root, self._sealer, self._held.store)
            self._connection.execute("COMMIT")
            self._root = root
        self._undo.clear()
        if self._counts:
            self._tell_vault(self._held.settled(self._held.keys[0], self._root.counter))

    def _take_back(self) -> None:
        while self._undo:
            self._undo.pop()()
        if not self._closed and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _renew(self) -> None:
        """A new file under a new key, see `renewal`."""
        key, counter = secrets.token_bytes(KEY_BYTES), self._root.counter + 1
        with translated_files():
            root = renewal.begin(self._folder, self._vault, self._held, key, self._contents, counter)
        self._undo.clear()
        try:
            self._connection.close()
            with translated_files():
                self._held = renewal.complete(self._folder, self._vault, self._held, key, root)
            self._work_on(connect(self.path, WAIT_SECONDS), key, root)
        except BaseException:
            # The next opening finishes: the new file is whole, and the vault knows its key.
            self._closed = "was cut off in a deletion, which goes on when it is opened"
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            raise

    def _tell_vault(self, held: Held) -> None:
        """Raises StoreError where that cannot be: the change is kept, and told with the next one or at the next
        opening; until then an older copy from before it would not be noticed."""
        self._vault.write(held)
        self._held = held
