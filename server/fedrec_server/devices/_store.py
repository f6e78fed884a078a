"""What calls ask of the database, grouped: one transaction, or one query, for many devices.

Reading and writing have a thread each, so that questions are handed out while answers are written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from fedrec_server.devices._groups import Grouped
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.state import admissions, cohorts, stages
from fedrec_server.devices.state.admissions import Quota
from fedrec_server.devices.state.cohorts import Joining, Member
from fedrec_server.devices.state.database import State
from fedrec_server.devices.state.stages import AnswerRow, Vector


@dataclass(frozen=True)
class NewAnswer:
    """An answer of a device; `vector`: to be summed."""

    member: Member
    number: int
    content: bytes | None
    refused: bool = False
    vector: Vector | None = None


class Store:
    """Safe for several threads.

    Args:
        state: the database.
        front_end: 32 hexadecimal digits; fresh for each process.
        limits: of a front end.
    """

    def __init__(self, state: State, front_end: str, limits: DeviceLimits) -> None:
        self._state, self._front_end, self._limits = state, front_end, limits
        self._writer = Grouped("writing", limits.group, limits.gather_seconds)
        self._reader = Grouped("reading", limits.group, limits.gather_seconds / 4)
        self._contents: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._content_lock = threading.Lock()

    def close(self) -> None:
        """Write what is waiting, then end."""
        self._writer.close()
        self._reader.close()

    def join(self, joining: Joining, address: str) -> int | None:
        """A place in a cohort; None: it is full or over. -1: the quotas of the day are used up."""
        return self._writer.run(self._join, (joining, address))

    def answer(self, answer: NewAnswer) -> bool:
        """Whether a device's answer counts, now or from before; it is on disk when this returns."""
        return self._writer.run(self._answer, answer)

    def leave(self, session: bytes) -> None:
        """A device, by the digest of its session, has left."""
        self._writer.run(self._leave, session)

    def see(self, session: bytes) -> None:
        """A device, by the digest of its session, is here."""
        self._writer.run(self._see, session)

    def member(self, session: bytes) -> Member | None:
        """The device of a session, by its digest."""
        return self._reader.run(self._members, session)

    def own(self, cohort: str, number: int, place: int) -> bytes | None:
        """A device's own part of a question; None: it is not asked."""
        return self._reader.run(self._own, (cohort, number, place))

    def has_answered(self, cohort: str, number: int, place: int) -> bool:
        """Whether a device's answer counts."""
        return self._reader.run(self._answered, (cohort, number, place))

    def content(self, cohort: str, name: str) -> bytes | None:
        """A common part; the last ones are remembered."""
        with self._content_lock:  # one reads, the others find it
            key = (cohort, name)
            found = self._contents.get(key)
            if found is None:
                with self._state.read() as connection:
                    found = stages.content(connection, cohort, name)
                if found is None:
                    return None
                self._contents[key] = found
            self._contents.move_to_end(key)
            while (
                sum(map(len, self._contents.values())) > self._limits.content_bytes
                and len(self._contents) > 1
            ):
                self._contents.popitem(last=False)
            return found

    # Groups --------------------------------------------------------------------------------------------

    def _join(self, asked: list[tuple[Joining, str]]) -> list[int | None]:
        limits, places = self._limits, dict[int, int | None]()
        with self._state.write() as connection:
            for cohort in sorted({joining.cohort for joining, _ in asked}):
                mine = [k for k, (joining, _) in enumerate(asked) if joining.cohort == cohort]
                known = cohorts.known_identities(connection, cohort, [asked[k][0].identity for k in mine])
                fresh = [k for k in mine if asked[k][0].identity not in known]
                quotas = [
                    [Quota(asked[k][1], limits.joins_per_address), Quota("", limits.joins_per_day)]
                    for k in fresh
                ]
                within = dict(zip(fresh, admissions.take_quotas(connection, quotas), strict=True))
                allowed = [k for k in mine if within.get(k, True)]
                places |= {k: -1 for k in mine if k not in allowed}
                given = cohorts.take_places(connection, cohort, [asked[k][0] for k in allowed])
                places |= dict(zip(allowed, given, strict=True))
        return [places[k] for k in range(len(asked))]

    def _answer(self, answers: list[NewAnswer]) -> list[bool]:
        by_stage: dict[tuple[str, int], dict[int, NewAnswer]] = {}
        for each in answers:
            by_stage.setdefault((each.member.cohort, each.number), {}).setdefault(each.member.place, each)
        taken: set[tuple[str, int, int]] = set()
        with self._state.write() as connection:
            for (cohort, number), first in sorted(by_stage.items(), key=lambda each: each[0]):
                stage = stages.hold_open(connection, cohort, number)
                if stage is None:  # what counted before still does
                    there = stages.answered(connection, cohort, number, first)
                    taken |= {(cohort, number, place) for place in there}
                    continue
                rows = [AnswerRow(place, each.content, each.refused) for place, each in first.items()]
                fresh = stages.add_answers(connection, cohort, number, rows)
                vectors = [first[place].vector for place in sorted(fresh)]
                if summed := [vector for vector in vectors if vector is not None]:
                    stages.add_to_sum(connection, stage, self._front_end, summed)
                taken |= {(cohort, number, place) for place in first}
        return [(each.member.cohort, each.number, each.member.place) in taken for each in answers]

    def _leave(self, sessions: list[bytes]) -> list[None]:
        with self._state.write() as connection:
            cohorts.leave(connection, sessions)
        return [None] * len(sessions)

    def _see(self, sessions: list[bytes]) -> list[None]:
        with self._state.write() as connection:
            cohorts.see(connection, sessions)
        return [None] * len(sessions)

    def _members(self, sessions: list[bytes]) -> list[Member | None]:
        with self._state.read() as connection:
            found = cohorts.by_session(connection, sessions)
        return [found.get(session) for session in sessions]

    def _own(self, asked: list[tuple[str, int, int]]) -> list[bytes | None]:
        found: dict[tuple[str, int, int], bytes] = {}
        with self._state.read() as connection:
            for cohort, number in {(cohort, number) for cohort, number, _ in asked}:
                places = [place for c, n, place in asked if (c, n) == (cohort, number)]
                parts = stages.own_parts(connection, cohort, number, places)
                found |= {(cohort, number, place): part for place, part in parts.items()}
        return [found.get(each) for each in asked]

    def _answered(self, asked: list[tuple[str, int, int]]) -> list[bool]:
        found: set[tuple[str, int, int]] = set()
        with self._state.read() as connection:
            for cohort, number in {(cohort, number) for cohort, number, _ in asked}:
                places = [place for c, n, place in asked if (c, n) == (cohort, number)]
                there = stages.answered(connection, cohort, number, places)
                found |= {(cohort, number, place) for place in there}
        return [each in found for each in asked]
