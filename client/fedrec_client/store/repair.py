"""What is sound in a damaged store, or in one that is not the one that was left here.

Rows are asked for one by one, so that a broken page costs the rows on it and no others. What is lost is told by the
root: a table whose rows are not exactly those of the root has lost at least one, be it to an older copy of itself.
Logs keep their sound entries in order, and the loss is noted in the log "repairs": where records or entries may be
missing or old, the privacy budget counts as spent (`participation`) and consent as withdrawn (`consent`).

The sound rows go into a new file under a new key (`renewal`), and the damaged file goes: under the old key it would
open to events that are deleted later.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedrec.core.errors import DataError, StoreCorrupt, StoreError, StoreLocked
from fedrec_client.store._contents import Contents
from fedrec_client.store._held import Held
from fedrec_client.store._renewal import find_root
from fedrec_client.store._root import TABLES, Root, Sum
from fedrec_client.store._rows import Row, contents_of
from fedrec_client.store._sealing import Sealer
from fedrec_client.store.base import Store
from fedrec_client.store.events import Event

REPAIRS = "repairs"
#: So many numbers in a row that cannot be read end the search; a broken inner page hides fewer rows.
_MAX_FAILURES = 20_000


def rescue(path: Path, held: Held) -> tuple[Contents, int, dict[str, int]]:
    """What can be kept.

    Args:
        path: of the database; it may be gone.
        held: by the vault.

    Returns:
        The contents with a note of the loss, the counter that they are to have, and how many rows were lost, at
        least, by table.

    Raises:
        StoreLocked: the file is another store's.
    """
    found: dict[str, list[Row]] = {table: [] for table in TABLES}
    root: Root | None = None
    if path.exists():
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damaged:
            try:
                root, _ = find_root(damaged, held, f"store {path}")
            except StoreLocked:
                raise
            except (StoreError, sqlite3.Error):
                root = None
            for table in TABLES:
                found[table] = list(_rows(damaged, table))
    texts, lost = {}, {}
    for table, rows in found.items():
        texts[table] = [text for row in rows if (text := _opened(held, table, row)) is not None]
        lost[table] = _lost(held, table, rows, len(texts[table]), root)
    contents = contents_of(texts, f"store {path}")
    note = {"id": secrets.token_hex(8), "lost": lost, "kept": {table: len(texts[table]) for table in TABLES}}
    contents.logs.setdefault(REPAIRS, []).append(json.dumps(note, sort_keys=True).encode())
    return contents, max(held.counter, root.counter if root else 0) + 1, lost


def last_loss(store: Store) -> str:
    """The id of the last repair after which records or entries may be missing or old; empty: there was none."""
    for entry in reversed(store.entries(REPAIRS)):
        note: dict[str, Any] = json.loads(entry)
        if note["lost"]["records"] or note["lost"]["entries"]:
            return str(note["id"])
    return ""


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[Row]:
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


def _lost(held: Held, table: str, rows: list[Row], kept: int, root: Root | None) -> int:
    """At least so many: none only where the rows are exactly those of the root."""
    if root is None:
        return max(max((number for number, _, _ in rows), default=0) - kept, 1)
    for key in held.keys:
        sums = Sum()
        for number, name, sealed in rows:
            sums = sums.add(Sealer(key).digest(table, number, name, sealed))
        if sums == root.sums[table] and kept == sums.count:
            return 0
    return max(root.sums[table].count - kept, 1)


def _opened(held: Held, table: str, row: Row) -> bytes | None:
    """The text of a row; None for one that is not sound."""
    for key in held.keys:
        with contextlib.suppress(StoreCorrupt, DataError):
            text = Sealer(key).open(table, *row[1:])
            if table == "events":
                Event.parse(text)
            return text
    return None
