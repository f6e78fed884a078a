"""Rows of tokens and quotas: what was used, and how much of a day.

What quotas are of (addresses) is kept as keyed hashes whose key is deleted with its day, so that no list of who
called can be made of them.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from fedrec_server.devices.state.database import insert_new
from fedrec_server.devices.state.tables import DAY_KEYS, QUOTAS, TOKENS

DAY = 86_400
#: Tokens are remembered for so long beyond their end: a clock that is put back revives none.
REMEMBERED_SECONDS = 30 * DAY
_KEY_BYTES = 16


@dataclass(frozen=True)
class Quota:
    """What may be taken in a day.

    Attributes:
        key: what is limited, e.g. an address; empty: all together.
        most: in a day.
    """

    key: str
    most: int


def use_token(connection: Connection, token: bytes, device: bytes, expires: float) -> bool:
    """Bind a token to a device, both as SHA-256; False: another device has used it."""
    row = {"hash": token, "device": device, "expires": expires}
    if insert_new(connection, TOKENS, [row], "hash"):
        connection.execute(delete(TOKENS).where(TOKENS.c.expires < time.time() - REMEMBERED_SECONDS))
        return True
    bound = connection.execute(select(TOKENS.c.device).where(TOKENS.c.hash == token)).scalar_one()
    return bytes(bound) == device


def take_quotas(
    connection: Connection, wanted: Sequence[Sequence[Quota]], now: float | None = None
) -> list[bool]:
    """Count one more under all keys of an entry, or under none; whether all were within their quota."""
    if not wanted:
        return []
    day = int((time.time() if now is None else now) // DAY)
    key = _day_key(connection, day)
    hashed = {quota.key: _hashed(key, quota.key) for quotas in wanted for quota in quotas}
    taken = _locked(connection, day, sorted(set(hashed.values())))
    before, allowed = dict(taken), []
    for quotas in wanted:
        free = all(taken[hashed[quota.key]] < quota.most for quota in quotas)
        for quota in quotas:
            taken[hashed[quota.key]] += free
        allowed.append(free)
    for name, count in taken.items():
        if count != before[name]:
            connection.execute(
                update(QUOTAS).where(QUOTAS.c.day == day, QUOTAS.c.key == name).values(count=count)
            )
    return allowed


def _locked(connection: Connection, day: int, keys: list[bytes]) -> dict[bytes, int]:
    """Counts so far; other transactions wait for this one."""
    insert_new(connection, QUOTAS, [{"day": day, "key": key, "count": 0} for key in keys], "count")
    statement = (
        select(QUOTAS.c.key, QUOTAS.c.count)
        .where(QUOTAS.c.day == day, QUOTAS.c.key.in_(keys))
        .order_by(QUOTAS.c.key)
        .with_for_update()
    )
    return {bytes(key): int(count) for key, count in connection.execute(statement)}


def _hashed(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=key, digest_size=_KEY_BYTES).digest()


def _day_key(connection: Connection, day: int) -> bytes:
    statement = select(DAY_KEYS.c.key).where(DAY_KEYS.c.day == day)
    found = connection.execute(statement).scalar_one_or_none()
    if found is None:
        for table in (QUOTAS, DAY_KEYS):
            connection.execute(delete(table).where(table.c.day < day))
        insert_new(connection, DAY_KEYS, [{"day": day, "key": secrets.token_bytes(32)}], "day")
        found = connection.execute(statement).scalar_one()
    return bytes(found)
