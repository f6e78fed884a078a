"""Rows of jobs: what devices are offered."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from fedrec.core.errors import RegistryError
from fedrec_server.devices.state.tables import JOBS

#: In which devices may join a job's cohorts; all other states are names of their owner.
RUNNING = "running"


@dataclass(frozen=True)
class JobRow:
    """A job as front ends know it.

    Attributes:
        id: 32 hexadecimal digits.
        population: whose devices may take part.
        document: the signed task.
        target, least, most: of a cohort.
        cycle: rounds between two of one device; None: any.
        state: `RUNNING` or another.
    """

    id: str
    population: str
    document: bytes
    target: int
    least: int
    most: int
    cycle: int | None = None
    state: str = RUNNING


_COLUMNS = [JOBS.c[name] for name in JobRow.__dataclass_fields__]


def add(connection: Connection, job: JobRow) -> None:
    """Add a job; its id must be new."""
    now = time.time()
    row = {name: getattr(job, name) for name in JobRow.__dataclass_fields__}
    connection.execute(insert(JOBS).values(**row, created=now, changed=now))


def set_state(connection: Connection, job: str, state: str) -> None:
    """Change a job's state.

    Raises:
        RegistryError: there is no such job.
    """
    changed = connection.execute(
        update(JOBS).where(JOBS.c.id == job).values(state=state, changed=time.time())
    )
    if not changed.rowcount:
        raise RegistryError(
            f"job {job} is not in this database: `fedrec-server job list` shows those that are"
        )


def find(connection: Connection, job: str) -> JobRow | None:
    """A job by its id."""
    row = connection.execute(select(*_COLUMNS).where(JOBS.c.id == job)).one_or_none()
    return JobRow(**row._mapping) if row else None


def running(connection: Connection) -> list[JobRow]:
    """Jobs that devices may join, in the order of their ids."""
    rows = connection.execute(select(*_COLUMNS).where(JOBS.c.state == RUNNING).order_by(JOBS.c.id))
    return [JobRow(**row._mapping) for row in rows]
