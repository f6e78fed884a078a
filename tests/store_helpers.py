"""What is left of deleted events: every byte of a folder, tried with every key that the folder's vault holds."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidTag

from fedrec.core.errors import StoreCorrupt
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.store._database import DATABASE
from fedrec_client.store._sealing import NONCE_BYTES, TAG_BYTES, Sealer
from fedrec_client.store.events import Event, EventType
from fedrec_client.testing import FakeService

#: Root metadata of some repository of population "a".
TRUST = FakeService("a").trust

#: Lengths of sealed short texts (see `sealing`).
LENGTHS = [NONCE_BYTES + 128 * k + TAG_BYTES for k in range(1, 5)]


class Ring:
    """A keychain in memory, which counts what is written and fails where it is told to."""

    def __init__(self) -> None:
        self.secrets: dict[tuple[str, str], str] = {}
        self.written, self.fails = 0, False

    def get_password(self, service: str, name: str) -> str | None:
        return self.secrets.get((service, name))

    def set_password(self, service: str, name: str, secret: str) -> None:
        if self.fails:
            raise RuntimeError("the keychain is locked")
        self.written += 1
        self.secrets[service, name] = secret

    def delete_password(self, service: str, name: str) -> None:
        del self.secrets[service, name]


def told(number: int, time: float, **fields: object) -> Event:
    return Event(EventType.PLAY, f"item-{number}", time, id=f"event-{number}", **fields)  # type: ignore[arg-type]


def opens(content: bytes, keys: Iterable[bytes], ids: Iterable[str]) -> set[str]:
    """Which events open from these bytes."""
    found, wanted = set(), set(ids)
    for sealer in map(Sealer, keys):
        for name in wanted - found:
            row, at = sealer.name("events", name), -1
            while (at := content.find(row, at + 1)) >= 0:
                for length in LENGTHS:
                    try:
                        sealer.open("events", row, content[at + 16 : at + 16 + length])
                    except (StoreCorrupt, InvalidTag, ValueError):
                        continue
                    found.add(name)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """All files."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left(folder: Path, ids: Iterable[str], *others: bytes, keys: Iterable[bytes] = ()) -> dict[str, set[str]]:
    """By file, which events open from a folder, and from other bytes, with all that the vault holds now."""
    held = [*(FileVault(folder).read().keys if (folder / "store.key").exists() else ()), *keys]
    found = {name: opens(content, held, ids) for name, content in contents(folder).items()}
    found |= {f"other {k}": opens(content, held, ids) for k, content in enumerate(others)}
    return {name: events for name, events in found.items() if events}


def rows(path: Path) -> dict[str, list[tuple[int, bytes, bytes]]]:
    """Of a database, by table."""
    connection = sqlite3.connect(path)
    found = {
        table: connection.execute(f"SELECT row, key, sealed FROM {table}").fetchall()
        for table in ("events", "records", "entries")
    }
    found["root"] = [(0, *row) for row in connection.execute("SELECT key, sealed FROM root")]
    connection.close()
    return found


def opened(folder: Path, *, repair: bool = False) -> SqliteStore:
    folder.mkdir(exist_ok=True, mode=0o700)
    vault = FileVault(folder) if (folder / "vault.json").exists() else FileVault.create(folder)
    return SqliteStore.open(folder, vault, repair=repair)


def ran(code: str, *arguments: str) -> list[object]:
    """The JSON lines that a program prints."""
    found = f"import sys; sys.path[:0] = {sys.path!r}\n"
    run = subprocess.run(
        [sys.executable, "-c", found + code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


__all__ = ["DATABASE", "Ring", "contents", "left", "opened", "opens", "ran", "rows", "told"]
