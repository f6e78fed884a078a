"""A file that only grows, and that tells when someone changed it: the book under the budget ledger.

Files of the folder:
    ledger.jsonl   one entry per line: number, MAC of the entry before, body, own MAC
    ledger.head    number and MAC of the last entry, itself under the key; replaced whole
    ledger.key     32 random bytes, readable by the owner only; written last of all when a book is begun
    ledger.lock    held by the one writer

An entry counts once its line and the head are on the disk, in this order. A crash in between leaves one entry too
many (kept: better charged and not released than the other way round) or a piece of a line (dropped: nothing was
released). Everything else that does not fit is tampering.

What this cannot see: the whole folder put back to an earlier copy, or removed (a new installation), and forgery by
whoever may read the key. Someone who must rely on another's book should keep copies of its head.
Out of scope: what entries mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

from fedrec.core.errors import LedgerTampered, PrivacyRefused
from fedrec.privacy.durable import PRIVATE, durable_write, make_folder, sync_folder

#: What stands for "the entry before" in the first one.
_START = "0" * 64
_KEY_BYTES = 32

Body = dict[str, Any]


class Journal:
    """One open book. `bodies` holds everything written so far, verified.

    Args:
        folder: of the book; begun when there is none.
        read_only: look without holding or mending anything; another process may be writing.

    Raises:
        LedgerTampered: the files do not hold together.
        PrivacyRefused: another process writes in this book, or the files cannot be read or made.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._file: BinaryIO | None = None
        self._last = _START
        self.bodies: list[Body] = []
        try:
            if not read_only:
                make_folder(folder)
                self._lock = _lock(folder)
            self._open(read_only)
        except OSError as error:
            self.close()
            raise PrivacyRefused(
                f"ledger {folder} cannot be used ({error.strerror}): nothing is released; give a folder that may be "
                "read and written"
            ) from error
        except BaseException:
            self.close()
            raise

    def append(self, body: Body) -> None:
        """Write one entry; once this returns it is on the disk.

        Raises:
            PrivacyRefused: it could not be written, or the book is open for reading only; nothing may be released.
        """
        if self._file is None:
            raise PrivacyRefused(f"ledger {self._folder} is not open for writing: open it again")
        line = _line(self._key, len(self.bodies) + 1, self._last, body)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._accept(line, body)
            self._write_head()
        except OSError as error:
            # What reached the disk is unknown: only a fresh look at the files can tell, so this writer is done.
            self.close()
            raise PrivacyRefused(
                f"ledger {self._folder} cannot be written ({error.strerror}): nothing is released; make room and "
                "start again"
            ) from error

    def close(self) -> None:
        """Let another process write."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Opening -------------------------------------------------------------------------------------------

    def _open(self, read_only: bool) -> None:
        if not self._path("key").exists():
            self._refuse_leftovers()
            if read_only:
                raise PrivacyRefused(f"{self._folder} holds no ledger: give the folder of one")
            self._begin()
        self._key = self._path("key").read_bytes()
        if len(self._key) != _KEY_BYTES:
            raise self._tampered(f"ledger.key has {len(self._key)} bytes, expected {_KEY_BYTES}")
        # The head first: a writer at work may add entries between the two reads, never take any away.
        head = self._head()
        whole = self._read_entries(head)
        if read_only:
            return
        with self._path("jsonl").open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
        self._write_head()
        self._file = self._path("jsonl").open("ab")

    def _begin(self) -> None:
        """Begin a book. The key comes last: where there is a key, there must be the rest."""
        self._key = secrets.token_bytes(_KEY_BYTES)
        durable_write(self._path("jsonl"), b"")
        self._write_head()
        durable_write(self._path("key"), self._key)

    def _refuse_leftovers(self) -> None:
        """Without a key there may be the empty beginnings of a book, but no entries."""
        lines, head = self._path("jsonl"), self._path("head")
        if lines.exists() and lines.stat().st_size > 0:
            raise self._tampered("ledger.key is missing although there are entries")
        if head.exists() and not head.read_bytes().startswith(b'{"entry":"' + _START.encode()):
            raise self._tampered("ledger.key and the entries are missing")

    def _head(self) -> tuple[int, str]:
        if not self._path("head").exists():
            raise self._tampered("ledger.head is missing")
        try:
            head = json.loads(self._path("head").read_bytes())
            seq, entry, mac = int(head["seq"]), str(head["entry"]), str(head["mac"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._tampered("ledger.head cannot be read") from error
        if not hmac.compare_digest(mac.encode(), _head_mac(self._key, seq, entry).encode()):
            raise self._tampered("ledger.head was edited, or ledger.key is another book's")
        return seq, entry

    def _read_entries(self, head: tuple[int, str]) -> int:
        """Verify all entries; the number of bytes of whole lines."""
        if not self._path("jsonl").exists():
            raise self._tampered("ledger.jsonl is missing")
        content = self._path("jsonl").read_bytes()
        whole = content.rfind(b"\n") + 1
        for text in content[:whole].split(b"\n")[:-1]:
            line, number = text + b"\n", len(self.bodies) + 1
            body = _body(line)
            if body is None or line != _line(self._key, number, self._last, body):
                raise self._tampered(f"entry {number} was edited, moved, or follows one that was taken out")
            self._accept(line, body)
            if number == head[0] and self._last != head[1]:
                raise self._tampered(f"entry {number} is not the one that ledger.head names")
        if len(self.bodies) < head[0]:
            raise self._tampered(f"{len(self.bodies)} entries are left of {head[0]}")
        return whole

    def _accept(self, line: bytes, body: Body) -> None:
        self._last = str(json.loads(line)["mac"])
        self.bodies.append(body)

    def _write_head(self) -> None:
        head = {"seq": len(self.bodies), "entry": self._last}
        head["mac"] = _head_mac(self._key, len(self.bodies), self._last)
        durable_write(self._path("head"), _json(head) + b"\n")

    def _path(self, ending: str) -> Path:
        return self._folder / f"ledger.{ending}"

    def _tampered(self, what: str) -> LedgerTampered:
        return LedgerTampered(
            f"ledger {self._folder}: {what}; nothing is released on its word. Put the folder back from a copy, or "
            "treat its budget as spent"
        )


def _lock(folder: Path) -> int:
    handle = os.open(folder / "ledger.lock", os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise PrivacyRefused(
            f"ledger {folder} is being written by another process: wait for it, or give every process its own folder"
        ) from error
    try:
        sync_folder(folder)
    except OSError:
        os.close(handle)
        raise
    return handle


def _line(key: bytes, seq: int, previous: str, body: Body) -> bytes:
    """The one way in which an entry is written, so that any other bytes are an edit."""
    entry = {"seq": seq, "previous": previous, "body": body}
    return _json({**entry, "mac": _mac(key, b"entry", bytes.fromhex(previous) + _json(entry))}) + b"\n"


def _body(line: bytes) -> Body | None:
    try:
        entry = json.loads(line)
        return dict(entry["body"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _head_mac(key: bytes, seq: int, entry: str) -> str:
    return _mac(key, b"head", f"{seq} {entry}".encode())


def _mac(key: bytes, use: bytes, message: bytes) -> str:
    return hmac.new(key, use + b"\0" + message, hashlib.sha256).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
