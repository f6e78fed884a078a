"""What SuperLink's database holds of messages that are over, and how it goes.

SuperLink keeps every message in its database until it was fetched: masked vectors, and the shares that open their
sum. Then it deletes the rows, which SQLite leaves readable in free pages and in the write-ahead log. Rewriting the
database drops both, beside a SuperLink that goes on working. Messages of a run whose coordinator was killed are
deleted when Flower is told that the run is over, at the next run's start. Out of scope: messages on their way, and
what they hold.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from fedrec.core.errors import FederationError

BUSY_SECONDS = 10.0
POLL_SECONDS = 0.1


def database_of(home: Path) -> Path:
    """The database in SuperLink's folder."""
    return home / "state.db"


def drop_deleted(database: Path) -> None:
    """Rewrite the database, and empty its log, so that deleted rows are in neither.

    Raises:
        FederationError: others kept it busy, or it is not a database.
    """
    if not database.exists():
        return
    deadline = time.monotonic() + BUSY_SECONDS
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise sqlite3.OperationalError("a reader holds its log")
                time.sleep(POLL_SECONDS)
    except sqlite3.Error as error:
        raise FederationError(
            f"{database} could not be rewritten without old messages ({error}): they go with "
            "`fedrec-server federation down`"
        ) from error
