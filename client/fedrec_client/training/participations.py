"""What a store holds of the jobs that a device took part in: how often, in which round last, and what is open.

    participation/<job>   count, last round, when the task expires, and whether a session was charged and is not over

A device that finds an open one when it is opened was cut off there: it stays charged, and how much left is not known.
A key of a session is never here: it dies with the process, so that nothing can be answered under it any more. Out of
scope: sessions (`session`), what was spent (`participation`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedrec_client.store.base import Store
from fedrec_client.terms.participation import Book

RECORDS = "participation/"
#: A record is kept for so long after its task has expired.
KEPT_SECONDS = 30 * 86_400.0


@dataclass(frozen=True)
class Participation:
    """In one job.

    Attributes:
        count: rounds that were charged.
        last_round: number of the last one; 0: none.
        expires: of the task, seconds since 1970.
        is_open: the last one was charged, and its session is not over.
    """

    count: int = 0
    last_round: int = 0
    expires: float = 0.0
    is_open: bool = False

    def allows(self, round_: int, cycle: int | None) -> bool:
        """Whether this device may take part in a round: each once, and one of `cycle` in a row."""
        return not self.last_round or round_ >= self.last_round + (cycle or 1)


def read(store: Store, job: str) -> Participation:
    """Of a job; nothing yet where there is no record."""
    known = store.get(RECORDS + job)
    return Participation() if known is None else Participation(**json.loads(known))


def write_charge(store: Store, job: str, round_: int, expires: float, now: float, **charge: Any) -> None:
    """One more participation, charged; on disk, both together, when this returns.

    Args:
        store: of this device.
        job: id.
        round_: number.
        expires: of the task.
        now: seconds since 1970.
        charge: of the entry in the book.
    """
    with store.transaction():
        made = replace(
            read(store, job),
            last_round=round_,
            expires=expires,
            is_open=True,
            count=read(store, job).count + 1,
        )
        store.put(RECORDS + job, json.dumps(asdict(made)).encode())
        Book(store).note("charged", now, job=job, round=round_, **charge)


def close(store: Store, job: str, now: float, what: str, **fields: Any) -> None:
    """The session of a job is over, as the book says."""
    with store.transaction():
        known = read(store, job)
        if known.is_open:
            store.put(RECORDS + job, json.dumps(asdict(replace(known, is_open=False))).encode())
            fields |= {"round": known.last_round}
        Book(store).note(what, now, job=job, **fields)


def end_cut_off(store: Store, now: float) -> None:
    """Note in the book what was cut off, and remove records of jobs that are long over."""
    for name in store.names(RECORDS):
        job = name.removeprefix(RECORDS)
        with suppress(ValueError, TypeError):  # a damaged record: the book counts as exhausted then
            known = read(store, job)
            if known.is_open:
                close(store, job, now, "cut off")
            elif now > known.expires + KEPT_SECONDS:
                store.remove(name)
