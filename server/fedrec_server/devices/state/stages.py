"""Rows of stages: questions, answers and partial sums of a cohort.

A stage takes answers while it is open; who writes one and who closes the stage wait for each other, so that each
answer is in what is read after the close or was refused. An answer counts once: the primary key decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, delete, func, insert, select, update

from fedrec_server.devices.state.database import insert_new
from fedrec_server.devices.state.tables import (
    ANSWERS,
    CONTENTS,
    MEMBERS,
    PARTIAL_SUMS,
    QUESTIONS,
    STAGES,
)

#: Answers that are in memory at once when they are read.
READ_AT_ONCE = 100
Vector = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class StageRow:
    """A stage; see `tables.STAGES`."""

    cohort: str
    number: int
    kind: str
    round: int
    phase: str
    common: str
    common_bytes: int
    deadline: float
    open: bool
    dtype: str
    length: int


@dataclass(frozen=True)
class AnswerRow:
    """Of one device; `content` None: a vector, which is in a sum."""

    place: int
    content: bytes | None
    refused: bool


_COLUMNS = [STAGES.c[name] for name in StageRow.__dataclass_fields__]


def begin(connection: Connection, row: StageRow, common: bytes, own: Mapping[int, bytes]) -> None:
    """Open a stage with its questions, by place."""
    if common and not has_content(connection, row.cohort, row.common):
        connection.execute(insert(CONTENTS).values(cohort=row.cohort, sha256=row.common, content=common))
    connection.execute(
        insert(STAGES).values({name: getattr(row, name) for name in StageRow.__dataclass_fields__})
    )
    rows = [
        {"cohort": row.cohort, "number": row.number, "place": place, "own": part}
        for place, part in own.items()
    ]
    if rows:
        connection.execute(insert(QUESTIONS), rows)


def sha256(content: bytes) -> str:
    """By which a common part is named; empty: there is none."""
    return hashlib.sha256(content).hexdigest() if content else ""


def zeros(dtype: str, length: int) -> Vector:
    """[length] the sum of no vectors."""
    return np.zeros(length, np.dtype(dtype).newbyteorder("<"))


def last_number(connection: Connection, cohort: str) -> int:
    """Of a cohort's stages so far; 0: there was none."""
    return (
        connection.execute(select(func.max(STAGES.c.number)).where(STAGES.c.cohort == cohort)).scalar() or 0
    )


def latest(connection: Connection, cohorts: Iterable[str]) -> dict[str, StageRow]:
    """The last stage of each of some cohorts that has one."""
    found: dict[str, StageRow] = {}
    statement = select(*_COLUMNS).where(STAGES.c.cohort.in_(list(cohorts))).order_by(STAGES.c.number)
    for row in connection.execute(statement):
        found[row.cohort] = StageRow(**row._mapping)
    return found


def hold_open(connection: Connection, cohort: str, number: int) -> StageRow | None:
    """A stage that stays open until this transaction ends; None: it takes no more answers."""
    statement = (
        select(*_COLUMNS)
        .where(STAGES.c.cohort == cohort, STAGES.c.number == number, STAGES.c.open)
        .with_for_update(read=True)
    )
    row = connection.execute(statement).one_or_none()
    return StageRow(**row._mapping) if row else None


def close(connection: Connection, cohort: str, number: int) -> None:
    """Take no more answers, and forget the questions."""
    connection.execute(
        update(STAGES).where(STAGES.c.cohort == cohort, STAGES.c.number == number).values(open=False)
    )
    connection.execute(delete(QUESTIONS).where(QUESTIONS.c.cohort == cohort, QUESTIONS.c.number == number))


def add_answers(connection: Connection, cohort: str, number: int, rows: Sequence[AnswerRow]) -> set[int]:
    """Note answers of an open stage; the places that had none before."""
    values = [
        {
            "cohort": cohort,
            "number": number,
            "place": row.place,
            "content": row.content,
            "refused": row.refused,
        }
        for row in {row.place: row for row in reversed(rows)}.values()
    ]
    return set(insert_new(connection, ANSWERS, values, "place")) if values else set()


def add_to_sum(connection: Connection, stage: StageRow, front_end: str, vectors: Sequence[Vector]) -> None:
    """Add vectors, each [length], to what a front end has summed, modulo 2^bits."""
    where = (
        PARTIAL_SUMS.c.cohort == stage.cohort,
        PARTIAL_SUMS.c.number == stage.number,
        PARTIAL_SUMS.c.front_end == front_end,
    )
    before = connection.execute(select(PARTIAL_SUMS.c.total).where(*where)).scalar_one_or_none()
    total = zeros(stage.dtype, stage.length)
    if before is not None:
        np.add(total, np.frombuffer(before, total.dtype), out=total)
    for vector in vectors:
        np.add(total, vector, out=total)
    if before is None:
        connection.execute(
            insert(PARTIAL_SUMS).values(
                cohort=stage.cohort,
                number=stage.number,
                front_end=front_end,
                dtype=stage.dtype,
                total=total.tobytes(),
            )
        )
    else:
        connection.execute(update(PARTIAL_SUMS).where(*where).values(total=total.tobytes()))


def total(connection: Connection, stage: StageRow) -> Vector:
    """[length] the sum over all front ends."""
    summed = zeros(stage.dtype, stage.length)
    statement = select(PARTIAL_SUMS.c.total).where(
        PARTIAL_SUMS.c.cohort == stage.cohort, PARTIAL_SUMS.c.number == stage.number
    )
    for (part,) in connection.execute(statement):
        np.add(summed, np.frombuffer(part, summed.dtype), out=summed)
    return summed


def answered(connection: Connection, cohort: str, number: int, places: Iterable[int]) -> set[int]:
    """Those of these places whose answer has come."""
    statement = select(ANSWERS.c.place).where(
        ANSWERS.c.cohort == cohort, ANSWERS.c.number == number, ANSWERS.c.place.in_(list(places))
    )
    return set(connection.execute(statement).scalars())


def missing(connection: Connection, cohort: str, number: int) -> int:
    """How many devices were asked, are still here and have not answered."""
    asked = (
        select(func.count())
        .select_from(
            QUESTIONS.join(
                MEMBERS, (MEMBERS.c.cohort == QUESTIONS.c.cohort) & (MEMBERS.c.place == QUESTIONS.c.place)
            ).outerjoin(
                ANSWERS,
                (ANSWERS.c.cohort == QUESTIONS.c.cohort)
                & (ANSWERS.c.number == QUESTIONS.c.number)
                & (ANSWERS.c.place == QUESTIONS.c.place),
            )
        )
        .where(
            QUESTIONS.c.cohort == cohort,
            QUESTIONS.c.number == number,
            ~MEMBERS.c.gone,
            ANSWERS.c.place.is_(None),
        )
    )
    return int(connection.execute(asked).scalar_one())


def answers(connection: Connection, cohort: str, number: int) -> Iterator[AnswerRow]:
    """All answers by place, some at a time."""
    after = -1
    while True:
        statement = (
            select(ANSWERS.c.place, ANSWERS.c.content, ANSWERS.c.refused)
            .where(ANSWERS.c.cohort == cohort, ANSWERS.c.number == number, ANSWERS.c.place > after)
            .order_by(ANSWERS.c.place)
            .limit(READ_AT_ONCE)
        )
        rows = connection.execute(statement).all()
        for place, content, refused in rows:
            yield AnswerRow(place, None if content is None else bytes(content), refused)
        if len(rows) < READ_AT_ONCE:
            return
        after = rows[-1].place


def own_parts(connection: Connection, cohort: str, number: int, places: Iterable[int]) -> dict[int, bytes]:
    """The own parts of some devices' questions."""
    statement = select(QUESTIONS.c.place, QUESTIONS.c.own).where(
        QUESTIONS.c.cohort == cohort, QUESTIONS.c.number == number, QUESTIONS.c.place.in_(list(places))
    )
    return {place: bytes(own) for place, own in connection.execute(statement)}


def has_content(connection: Connection, cohort: str, name: str) -> bool:
    """Whether a common part is there."""
    statement = select(CONTENTS.c.sha256).where(CONTENTS.c.cohort == cohort, CONTENTS.c.sha256 == name)
    return connection.execute(statement).first() is not None


def content(connection: Connection, cohort: str, name: str) -> bytes | None:
    """A common part by its SHA-256."""
    statement = select(CONTENTS.c.content).where(CONTENTS.c.cohort == cohort, CONTENTS.c.sha256 == name)
    found = connection.execute(statement).scalar_one_or_none()
    return None if found is None else bytes(found)
