"""Rows of cohorts and their members: a cohort forms, runs and is over; then only its outcome is kept.

A session is 32 bytes: the cohort's id and 16 secret ones, of which the database has the hash.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, text, update

from fedrec_server.devices.state.tables import (
    ANSWERS,
    COHORTS,
    CONTENTS,
    MEMBERS,
    PARTIAL_SUMS,
    QUESTIONS,
    STAGES,
)

FORMING, RUNNING, OVER = "forming", "running", "over"
SESSION_BYTES = 32
#: A device of a cohort that forms has left when it has not called for so long.
HERE_SECONDS = 45.0
#: Outcomes of cohorts are kept for so long.
OUTCOME_SECONDS = 7 * 86_400.0


@dataclass(frozen=True)
class CohortRow:
    """A cohort; see `tables.COHORTS`."""

    id: str
    job: str
    round: int
    phase: str
    attempt: int
    state: str
    target: int
    least: int
    most: int
    joined: int
    deadline: float
    outcome: str
    retry_after: float


@dataclass(frozen=True)
class Member:
    """A device of a cohort; `gone`: it has left."""

    cohort: str
    place: int
    identity: bytes
    users: int
    gone: bool


@dataclass(frozen=True)
class Joining:
    """A device that asks for a place; `session`: its secret."""

    cohort: str
    session: bytes
    identity: bytes


_COLUMNS = [COHORTS.c[name] for name in CohortRow.__dataclass_fields__]
_MEMBER = [MEMBERS.c[name] for name in Member.__dataclass_fields__]


def new_session(cohort: str) -> bytes:
    """A fresh secret of a device in a cohort."""
    return bytes.fromhex(cohort) + secrets.token_bytes(SESSION_BYTES // 2)


def cohort_of(session: bytes) -> str:
    """Which cohort a session says it is of."""
    return session[: SESSION_BYTES // 2].hex()


def digest(session: bytes) -> bytes:
    """By which the database knows a session."""
    return hashlib.sha256(session).digest()


def add(connection: Connection, row: CohortRow) -> None:
    """Add a cohort; its id must be new."""
    values = {name: getattr(row, name) for name in CohortRow.__dataclass_fields__}
    connection.execute(insert(COHORTS).values(**values, changed=time.time()))


def find(connection: Connection, cohort: str, *, lock: bool = False) -> CohortRow | None:
    """A cohort by its id; `lock`: others wait until this transaction ends."""
    statement = select(*_COLUMNS).where(COHORTS.c.id == cohort)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    return CohortRow(**row._mapping) if row else None


def find_all(connection: Connection, cohorts: Iterable[str]) -> list[CohortRow]:
    """Those of these cohorts that there are."""
    rows = connection.execute(select(*_COLUMNS).where(COHORTS.c.id.in_(list(cohorts))))
    return [CohortRow(**row._mapping) for row in rows]


def live(connection: Connection, job: str | None = None) -> list[CohortRow]:
    """Cohorts that are not over, of one job or of all."""
    statement = select(*_COLUMNS).where(COHORTS.c.state.in_([FORMING, RUNNING]))
    if job is not None:
        statement = statement.where(COHORTS.c.job == job)
    return [CohortRow(**row._mapping) for row in connection.execute(statement)]


#: Written out: it is asked many times a second, and to build the statement costs more than to answer it.
_MARK = text(
    "SELECT c.id, c.state, c.joined, c.changed, s.number, s.open FROM cohorts c LEFT JOIN stages s "
    "ON s.cohort = c.id AND s.number = (SELECT MAX(number) FROM stages WHERE cohort = c.id) "
    f"WHERE c.state IN ('{FORMING}', '{RUNNING}') ORDER BY c.id"
)


def mark(connection: Connection) -> list[tuple[object, ...]]:
    """Differs whenever a cohort begins, ends or changes, a device joins, or a stage begins or closes."""
    return [tuple(row) for row in connection.execute(_MARK)]


def change(connection: Connection, cohort: str, **values: object) -> None:
    """Change columns of a cohort."""
    connection.execute(update(COHORTS).where(COHORTS.c.id == cohort).values(**values, changed=time.time()))


def take_places(connection: Connection, cohort: str, devices: Sequence[Joining]) -> list[int | None]:
    """Give places to devices, in their order; None: the cohort forms no more, or is full.

    An identity that has a place keeps it under its new session, whether the cohort still forms or runs.
    """
    row = find(connection, cohort, lock=True)
    if row is None or row.state == OVER:
        return [None] * len(devices)
    known = known_identities(connection, cohort, [each.identity for each in devices])
    fresh: dict[bytes, dict[str, object]] = {}
    places: list[int | None] = []
    now, joined = time.time(), row.joined
    present = count(connection, cohort)
    for each in devices:
        place = known.get(each.identity)
        if place is None and row.state == FORMING and row.deadline > now and present + len(fresh) < row.most:
            place, joined = joined, joined + 1
            fresh[each.identity] = {
                "session": digest(each.session),
                "cohort": cohort,
                "place": place,
                "identity": each.identity,
                "users": 1,
                "seen": now,
                "gone": False,
            }
            known[each.identity] = place
        elif place is not None:
            _renew(connection, each, fresh)
        places.append(place)
    if fresh:
        connection.execute(insert(MEMBERS), list(fresh.values()))
        connection.execute(update(COHORTS).where(COHORTS.c.id == cohort).values(joined=joined))
    return places


def known_identities(connection: Connection, cohort: str, identities: Sequence[bytes]) -> dict[bytes, int]:
    """Places of those of these identities that have one and have not left."""
    statement = select(MEMBERS.c.identity, MEMBERS.c.place).where(
        MEMBERS.c.cohort == cohort, MEMBERS.c.identity.in_(identities), ~MEMBERS.c.gone
    )
    return {bytes(identity): place for identity, place in connection.execute(statement)}


def _renew(connection: Connection, device: Joining, fresh: dict[bytes, dict[str, object]]) -> None:
    if device.identity in fresh:
        fresh[device.identity]["session"] = digest(device.session)
        return
    connection.execute(
        update(MEMBERS)
        .where(MEMBERS.c.cohort == device.cohort, MEMBERS.c.identity == device.identity)
        .values(session=digest(device.session))
    )


def count(connection: Connection, cohort: str, seen_since: float = 0.0) -> int:
    """How many devices have a place and have not left."""
    statement = select(func.count()).where(
        MEMBERS.c.cohort == cohort, ~MEMBERS.c.gone, MEMBERS.c.seen >= seen_since
    )
    return int(connection.execute(statement).scalar_one())


def present(connection: Connection, cohorts: Iterable[str]) -> dict[str, int]:
    """How many devices of each of some cohorts have a place and have not left."""
    statement = (
        select(MEMBERS.c.cohort, func.count())
        .where(MEMBERS.c.cohort.in_(list(cohorts)), ~MEMBERS.c.gone)
        .group_by(MEMBERS.c.cohort)
    )
    return {str(cohort): int(number) for cohort, number in connection.execute(statement)}


def members(connection: Connection, cohort: str) -> list[Member]:
    """The devices of a cohort by place, also those that have left."""
    statement = select(*_MEMBER).where(MEMBERS.c.cohort == cohort).order_by(MEMBERS.c.place)
    return [Member(**row._mapping) for row in connection.execute(statement)]


def by_session(connection: Connection, sessions: Iterable[bytes]) -> dict[bytes, Member]:
    """The devices of some sessions, by the session's digest."""
    statement = select(MEMBERS.c.session, *_MEMBER).where(MEMBERS.c.session.in_(list(sessions)))
    found = {}
    for session, *rest in connection.execute(statement):
        found[bytes(session)] = Member(*rest)
    return found


def see(connection: Connection, sessions: Sequence[bytes]) -> None:
    """Note that devices with these digests of sessions are here."""
    connection.execute(update(MEMBERS).where(MEMBERS.c.session.in_(list(sessions))).values(seen=time.time()))


def leave(connection: Connection, sessions: Sequence[bytes]) -> None:
    """Note that devices with these digests of sessions have left."""
    connection.execute(update(MEMBERS).where(MEMBERS.c.session.in_(list(sessions))).values(gone=True))


def drop_unseen(connection: Connection, cohort: str, seen_since: float) -> None:
    """Count devices as gone that have not called since then."""
    connection.execute(
        update(MEMBERS).where(MEMBERS.c.cohort == cohort, MEMBERS.c.seen < seen_since).values(gone=True)
    )


def finish(connection: Connection, cohort: str, outcome: str, retry_after: float) -> None:
    """A cohort is over: its outcome is kept for a while, and nothing else of it."""
    connection.execute(
        update(COHORTS)
        .where(COHORTS.c.id == cohort, COHORTS.c.state != OVER)
        .values(state=OVER, outcome=outcome, retry_after=retry_after, changed=time.time())
    )
    # Stages first: that waits for answers which are being written, so that these are deleted, too.
    for table in (STAGES, QUESTIONS, ANSWERS, PARTIAL_SUMS, CONTENTS, MEMBERS):
        connection.execute(delete(table).where(table.c.cohort == cohort))
    oldest = time.time() - OUTCOME_SECONDS
    connection.execute(delete(COHORTS).where(COHORTS.c.state == OVER, COHORTS.c.changed < oldest))
