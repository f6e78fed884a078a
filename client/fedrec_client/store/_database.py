"""The store's file: how SQLite opens it, and that nothing but the store's own regular files is opened.

Write-ahead log with `synchronous=FULL`: an acknowledged write has reached the disk. Files are the owner's alone from
their first byte: the database is made by us with its mode, and SQLite gives its log the same. Out of scope: rows
(`rows`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fedrec.core.errors import StoreCorrupt, StoreError, StoreFull, StoreLocked
from fedrec.core.files import PRIVATE, create, refuse_link, sync_folder

DATABASE = "events.db"
#: A new database that is not whole yet, and one that is and takes the place of the other.
MAKING, STAGED = ".events.db.making", ".events.db.new"
SIDES = ("", "-wal", "-shm", "-journal")
#: The write-ahead log starts over after so many pages: little room is lost to it.
_LOG_PAGES = 128
_FULL = {sqlite3.SQLITE_FULL}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CANNOT_WRITE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def connect(path: Path, wait_seconds: float) -> sqlite3.Connection:
    """A database that is there, held by this connection alone: no other can read it, now or an earlier state of it.

    Raises:
        StoreError: see `translated`.
    """
    with translated():
        connection = sqlite3.connect(
            path, timeout=wait_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            for setting in (
                "locking_mode = EXCLUSIVE",
                "journal_mode = WAL",
                "synchronous = FULL",
                f"wal_autocheckpoint = {_LOG_PAGES}",
                "secure_delete = ON",
                "temp_store = MEMORY",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {setting}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
    return connection


def draft(path: Path) -> sqlite3.Connection:
    """An empty database that is written in one go, by which nothing else goes; `finish` brings it to the disk."""
    remove(path)
    os.close(create(path))
    connection = sqlite3.connect(path, isolation_level=None)
    for setting in (
        "locking_mode = EXCLUSIVE",
        "journal_mode = OFF",
        "synchronous = OFF",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {setting}")
    return connection


def finish(path: Path, name: str) -> None:
    """A draft that was closed: to the disk, under its name."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    path.replace(path.with_name(name))
    sync_folder(path.parent)


def install(folder: Path) -> None:
    """The staged database in the place of the other, whose log goes first: it must not be played into the new one."""
    for side in SIDES[1:]:
        (folder / f"{DATABASE}{side}").unlink(missing_ok=True)
    sync_folder(folder)
    (folder / STAGED).replace(folder / DATABASE)
    sync_folder(folder)


def remove(path: Path) -> None:
    """A database and what SQLite keeps beside it."""
    for side in SIDES:
        path.with_name(path.name + side).unlink(missing_ok=True)


def guard(path: Path) -> None:
    """The database and what lies beside it: regular files, for their owner alone.

    Raises:
        OSError: one is a symbolic link, or cannot be changed.
    """
    for side in SIDES:
        part = path.with_name(path.name + side)
        refuse_link(part)
        if part.exists() and os.name == "posix" and part.stat().st_mode & 0o077:
            part.chmod(PRIVATE)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Errors of SQLite as the SDK's own."""
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


@contextlib.contextmanager
def translated_files() -> Iterator[None]:
    """Errors of files as the SDK's own."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StoreFull(
                f"the store cannot be written ({error.strerror}): what was acknowledged is kept; free some space"
            ) from error
        raise StoreError(f"the store cannot be used: {file_trouble(error)}") from error


def file_trouble(error: OSError) -> str:
    """File and reason in one line."""
    if error.errno == errno.ELOOP:
        return f"{error.filename} is a symbolic link: remove it, none is followed"
    return (
        f"{error.filename or 'a file'} ({error.strerror}): give a folder that this account owns and can write"
    )
