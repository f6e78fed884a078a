"""A new file under a new key in the place of a store's file: how everything that is deleted goes for good.

    1  the vault holds the key and the next one
    2  what stays is written into a new file under the next key, and the file is brought to the disk
    3  the new file takes the place of the old one
    4  the vault forgets the old key

After 4 no byte of the old file can be read, wherever a copy of it lies: in free pages, in a log, with a reader that
still holds it open, in a backup without the vault. A crash before the end of 2 leaves the store as it was; after it,
the next opening does the rest (`settle`). Out of scope: what stays.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from fedrec.core.errors import StoreCorrupt, StoreError, StoreLocked
from fedrec.core.files import refuse_link
from fedrec_client.store._contents import Contents
from fedrec_client.store._database import MAKING, STAGED, draft, finish, install, remove
from fedrec_client.store._held import Held
from fedrec_client.store._root import TABLES, Root, stale
from fedrec_client.store._rows import SCHEMA, write_all
from fedrec_client.store._sealing import Sealer
from fedrec_client.store._vault import Vault


def stage(folder: Path, key: bytes, store: bytes, contents: Contents, counter: int) -> Root:
    """Step 2: a whole new file beside the old one.

    Raises:
        StoreFull: no room; nothing is left behind.
    """
    making = folder / MAKING
    try:
        with contextlib.closing(draft(making)) as connection:
            root = write_all(connection, Sealer(key), store, contents, counter)
        finish(making, STAGED)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(making)
        raise
    return root


def begin(folder: Path, vault: Vault, held: Held, key: bytes, contents: Contents, counter: int) -> Root:
    """Steps 1 and 2; when they fail, the store is as it was."""
    vault.write(held.with_next(key))
    try:
        return stage(folder, key, held.store, contents, counter)
    except BaseException:
        with contextlib.suppress(StoreError):  # else the next opening forgets the key that was not used
            vault.write(held)
        raise


def complete(folder: Path, vault: Vault, held: Held, key: bytes, root: Root) -> Held:
    """Steps 3 and 4, with the old file closed; what the vault holds afterwards."""
    install(folder)
    after = held.settled(key, root.counter)
    vault.write(after)
    return after


def settle(folder: Path, held: Held) -> None:
    """What a crash left of step 2 goes; a new file that is whole takes its place (step 3)."""
    remove(folder / MAKING)
    staged = folder / STAGED
    refuse_link(staged)
    if not staged.exists():
        return
    if (len(held.keys) == 2 or held.counter == 0) and _is_next(staged, held):
        install(folder)
    else:
        remove(staged)


def _is_next(staged: Path, held: Held) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(staged, isolation_level=None)) as connection:
            root, key = find_root(connection, held, str(staged))
    except (sqlite3.Error, StoreError):
        return False
    return key == held.keys[-1] and root.counter > held.counter


def find_root(connection: sqlite3.Connection, held: Held, what: str) -> tuple[Root, bytes]:
    """The root of a file, and which of the vault's keys opens it.

    Raises:
        StoreLocked: the file was written under a key that is not in the vault, and is another store's.
        StoreCorrupt: the root is damaged, or of an older copy.
        StoreError: a newer client wrote the file.
    """
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema > SCHEMA:
        raise StoreError(
            f"{what} has schema {schema}, this client knows {SCHEMA}: update the app; nothing was touched"
        )
    if schema < SCHEMA:
        raise stale(f"{what} has no root")
    rows = connection.execute("SELECT key, sealed FROM root").fetchall()
    for key in reversed(held.keys):
        for _, sealed in rows:
            try:
                root = Root.open(Sealer(key), held.store, sealed)
            except (StoreCorrupt, TypeError):
                continue
            if root.counter < held.counter:
                raise stale(f"{what} is at change {root.counter}, the vault at {held.counter}")
            return root, key
    if {name for name, _ in rows} != {held.store} and _foreign(connection, held):
        raise StoreLocked(f"{what} was written under another key: restore the key that made it")
    raise stale(f"the root of {what} cannot be opened")


def _foreign(connection: sqlite3.Connection, held: Held) -> bool:
    """Whether there are rows, and none of them is ours."""
    sealers, rows = [Sealer(key) for key in held.keys], 0
    for table in TABLES:
        for key, sealed in connection.execute(f"SELECT key, sealed FROM {table}"):
            rows += 1
            for sealer in sealers:
                with contextlib.suppress(StoreCorrupt, TypeError):
                    sealer.open(table, key, sealed)
                    return False
    return rows > 0
