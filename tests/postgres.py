"""A real PostgreSQL for tests, one per process, with a database of its own for each test."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_numbers = itertools.count(1)


def found() -> bool:
    """Whether this machine has one."""
    return find_spec("pgserver") is not None and find_spec("psycopg") is not None


@functools.cache
def _server() -> str:
    """URL of the server, which ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="fedrec-pg-"))
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # platformdirs, which it imports, warns without
    try:
        import pgserver

        server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    atexit.register(server.cleanup)
    return str(server.get_uri())


@contextmanager
def new_database() -> Iterator[str]:
    """URL of a fresh, empty database."""
    import psycopg

    url, name = _server(), f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
