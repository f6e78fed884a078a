"""What a coordinator must not forget of its secure sums when it is killed.

attempt     a number that rises over the whole run, on disk before it is used; nodes join none twice
given       sums for which nodes were asked for shares, because a fixed roster will not be asked twice for one
group       who took part in exact sums (see `fedrec.secagg.schedule`)
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrec.privacy.durable import durable_write
from fedrec.secagg.schedule import Group

_NO_NOTES: dict[str, Any] = {"attempt": 0, "given": [], "group": {"joined": [], "last": None}}


class ProtocolLog:
    """See the module's text.

    Args:
        folder: the coordinator's.
    """

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "secagg.json"

    def next_attempt(self) -> int:
        """A number larger than all before it."""
        notes = self._read()
        attempt = int(notes["attempt"]) + 1
        self._write(notes | {"attempt": attempt})
        return attempt

    def give_away(self, label: str) -> None:
        """Note that shares of this sum are being asked for."""
        notes = self._read()
        self._write(notes | {"given": [*notes["given"], label]})

    def keep_group(self, group: Group) -> None:
        """Note who takes part in guarded sums, before nodes know it."""
        self._write(self._read() | {"group": asdict(group)})

    def group(self) -> Group:
        """Who took part in guarded sums."""
        plain = self._read()["group"]
        return Group(tuple(plain["joined"]), None if plain["last"] is None else tuple(plain["last"]))

    def given_away(self, label: str) -> bool:
        """Whether they were."""
        return label in self._read()["given"]

    def _write(self, notes: dict[str, Any]) -> None:
        durable_write(self._notes, (json.dumps(notes, sort_keys=True) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        return json.loads(self._notes.read_text()) if self._notes.exists() else _NO_NOTES
