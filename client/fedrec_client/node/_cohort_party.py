"""A node's part in attempts whose rosters are made anew: the signed roster of an attempt makes its `SecureParty`.

The roster is public and is kept with the secrets of the attempt, because the next stage may be served by another
process. A node without a folder is one session of one device: it takes the roster of one cohort, and no second one
under the same identity. Out of scope: the steps (`secure_party`), forming cohorts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.core.messages import Reply, Request
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.roster import Identity, Roster
from fedrec.secagg.signed_roster import KEY_BYTES, read_roster, roster_of
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import CohortTerms, SecaggTerms
from fedrec_client.node._memory import Memory
from fedrec_client.node._secure_party import PREFIX, SecureParty, payload_of

_LENGTH_BYTES, _USERS_BYTES = 8, 4
#: Arrays of the advertise request, after `PREFIX`.
_ROSTER = ("keys", "users", "signature")


class CohortParty:
    """See the module's text; answers as `SecureParty` does.

    Args:
        terms: pinned on this node.
        identity: its signing key.
        folder: where the promises are kept; None: this is one session of one device.
        users: how many the node hosts; None: not known to this process, which serves no vector then.
    """

    def __init__(
        self, terms: CohortTerms, identity: Identity, folder: Path | None, users: int | None = 1
    ) -> None:
        self._cohort_terms, self._identity, self._folder, self._users = terms, identity, folder, users
        self._parties: dict[bytes, SecureParty] = {}
        self._began = False

    @property
    def terms(self) -> SecaggTerms:
        """Those of every attempt; the roster is empty."""
        return self._cohort_terms.rules

    def handle(self, request: Request, memory: Memory) -> Reply:
        """See `SecureParty.handle`; raises AggregationRefused for a roster that the terms do not allow, too."""
        if request.kind != "advertise":
            kept = _WithRoster(memory)
            return self._of(kept.packed()).handle(request, kept)
        roster = self._read(request)
        packed = _packed(roster)
        if self._folder is None and self._began:
            raise AggregationRefused(
                "a second attempt came under one identity: a device takes part in one cohort under each",
                Reason.REPLAY,
            )
        self._began = True
        mine = {name: values for name, values in request.arrays.items() if name not in _names()}
        return self._of(packed, roster).handle(replace(request, arrays=mine), _WithRoster(memory, packed))

    def payload(self, request: Request) -> Request:
        """See `SecureParty.payload`."""
        return payload_of(request)

    def mask(self, request: Request, memory: Memory, vector: NDArray[Any]) -> Reply:
        """See `SecureParty.mask`."""
        kept = _WithRoster(memory)
        party = self._of(kept.packed())
        self._expect_own_users(party.terms.roster)
        return party.mask(request, kept, vector)

    def _read(self, request: Request) -> Roster:
        arrays = {name: request.arrays[PREFIX + name] for name in _ROSTER if PREFIX + name in request.arrays}
        kind, attempt = request.meta.get(PREFIX + "kind"), request.meta.get(PREFIX + "attempt")
        if not isinstance(kind, str) or type(attempt) is not int:
            raise AggregationRefused(
                f"a roster for kind {kind!r:.40} and attempt {attempt!r:.40}: expected a word and a number",
                Reason.FORMAT,
            )
        label = label_of(kind, request.phase, request.round)
        roster = read_roster(self._cohort_terms, arrays, label=label, attempt=attempt)
        self._expect_own_users(roster)
        return roster

    def _expect_own_users(self, roster: Roster) -> None:
        users = roster.members[roster.index(self._identity.public)].users
        if self._users not in (None, users):
            raise AggregationRefused(
                f"the roster says that this node has {users} users: it has {self._users}", Reason.USERS
            )

    def _of(self, packed: bytes, read: Roster | None = None) -> SecureParty:
        """Of a packed roster, which was read already or not; the same for every stage of an attempt."""
        if packed not in self._parties:
            terms = self._cohort_terms.of(_unpacked(packed) if read is None else read)
            self._parties = {packed: SecureParty(terms, self._identity, self._folder)}
        return self._parties[packed]


class _WithRoster:
    """A memory that holds the roster in front of what the steps keep.

    Args:
        memory: of the node.
        roster: packed, of the attempt that begins; None: the one that is held.
    """

    def __init__(self, memory: Memory, roster: bytes | None = None) -> None:
        self._memory = memory
        self._roster = roster or b""

    def packed(self) -> bytes:
        """The one that is held; raises AggregationRefused where there is none."""
        self._roster, _ = self._split()
        if not self._roster:
            raise AggregationRefused(
                "this node holds no roster: it was restarted, or the attempt is over", Reason.FORGOTTEN
            )
        return self._roster

    def get(self) -> bytes | None:
        """See `Memory`."""
        return self._split()[1]

    def put(self, data: bytes) -> None:
        """See `Memory`."""
        self._memory.put(len(self._roster).to_bytes(_LENGTH_BYTES, "big") + self._roster + data)

    def clear(self) -> None:
        """See `Memory`."""
        self._memory.clear()

    def _split(self) -> tuple[bytes, bytes | None]:
        data = self._memory.get()
        if data is None:
            return b"", None
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        return data[_LENGTH_BYTES:end], data[end:]


def _names() -> set[str]:
    return {PREFIX + name for name in _ROSTER}


def _packed(roster: Roster) -> bytes:
    return b"".join(
        bytes.fromhex(each.key) + each.users.to_bytes(_USERS_BYTES, "big") for each in roster.members
    )


def _unpacked(data: bytes) -> Roster:
    width = KEY_BYTES + _USERS_BYTES
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    return roster_of(
        (row[:KEY_BYTES].tobytes(), int.from_bytes(row[KEY_BYTES:].tobytes(), "big")) for row in rows
    )
