"""Opens the database: its tables are brought to this version first.

A transaction is durable when its block ends: SQLite runs with a write-ahead log and full synchronisation, PostgreSQL
as its operator has set it. Writers on SQLite wait for each other; on PostgreSQL rows are locked by what needs them.
Out of scope: what is in the tables (`tables`) and what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fedrec.core.errors import ServiceError

MIGRATIONS = Path(__file__).parent / "migrations"
#: How long a writer on SQLite waits for another, and a caller for a connection.
WAIT_SECONDS = 30.0
POOL = 10
#: "fedrec" in hexadecimal digits: of the lock under which tables are made.
_MIGRATION_LOCK = 0x666564726563
_AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}


class State:
    """An open database; safe for several threads. Made by `open_state`.

    Attributes:
        is_sqlite: rather than PostgreSQL.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading = engine.execution_options(**_AUTOCOMMIT)
        self.is_sqlite = engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """For statements that only read, each of which sees what is committed when it begins."""
        with self._reading.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed when the block ends and undone when it fails."""
        with self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back; again is free."""
        self._engine.dispose()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_state(url: str) -> State:
    """Open a database, and make or renew its tables.

    Args:
        url: "sqlite:///folder/file.db" or "postgresql://user:password@host/database".

    Raises:
        ServiceError: it cannot be reached, is of a later version, or the URL is not one.
    """
    shown = url.rpartition("@")[2]
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ArgumentError("neither sqlite nor postgresql")
        if parsed.get_backend_name() == "sqlite" and not parsed.database:
            raise ArgumentError("a database in memory cannot be shared")
        engine = _engine(parsed)
    except (ArgumentError, ImportError, OSError) as error:
        raise ServiceError(
            f"database {shown!r} cannot be used ({error}): "
            "expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME (`pip install 'fedrec[postgres]'`)"
        ) from error
    try:
        migrate(engine)
    except Exception as error:
        engine.dispose()
        if not isinstance(error, SQLAlchemyError) and type(error).__module__.partition(".")[0] != "alembic":
            raise
        reason = " ".join(str(error).partition("\n")[0].split())
        raise ServiceError(
            f"database {shown!r} cannot be opened ({reason}): check address and rights"
        ) from error
    return State(engine)


def migrate(engine: Engine) -> None:
    """Bring the tables to this version; one process at a time."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def insert_new(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], returning: str
) -> list[Any]:
    """Insert the rows whose primary key is new; the values of one column of those that were."""
    made = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
    statement = made.on_conflict_do_nothing().returning(table.c[returning])
    return list(connection.execute(statement, list(rows)).scalars())


def _engine(url: Any) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(
            url, pool_size=POOL, max_overflow=POOL, pool_timeout=WAIT_SECONDS, pool_pre_ping=True
        )
    Path(url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        pool_size=POOL,
        max_overflow=POOL,
        pool_timeout=WAIT_SECONDS,
        connect_args={"timeout": WAIT_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def settle(connection: Any, _: object) -> None:
        connection.isolation_level = None  # sqlite3 begins no transaction by itself
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = FAST"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes then would be refused when another has written in between.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
