"""The roster of one attempt, signed: who takes part in a cohort of the devices that are here now.

The roster comes with the first request of an attempt. Its signature binds it to the run, the sum and the attempt, and
the digest of the terms that follow from it binds every later message (`context`). Who signs rosters decides whom a
device masks against: see `roster`. Out of scope: forming cohorts, and the terms (`terms`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray
from pydantic import ValidationError

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.messages import Arrays, check
from fedrec.secagg.roster import SIGNATURE_BYTES, Identity, Member, Roster
from fedrec.secagg.terms import CohortTerms

KEY_BYTES = 32
_LABEL = b"fedrec roster 1"


def sign_roster(signer: Identity, roster: Roster, *, run: str, label: str, attempt: int) -> Arrays:
    """The roster of an attempt as it is sent.

    Args:
        signer: whose public key devices have pinned.
        roster: who takes part, in order.
        run: of the terms.
        label: of the sum (`fedrec.secagg.sums.label_of`).
        attempt: rises over the run.

    Returns:
        keys uint8 [n, 32], users uint32 [n], signature uint8 [64].
    """
    joined = b"".join(bytes.fromhex(member.key) for member in roster.members)
    keys = np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES).copy()
    users = np.array([member.users for member in roster.members], dtype=np.uint32)
    signature = signer.sign(_signed(keys, users, run, label, attempt))
    return {"keys": keys, "users": users, "signature": np.frombuffer(signature, dtype=np.uint8).copy()}


def read_roster(terms: CohortTerms, arrays: Mapping[str, Any], *, label: str, attempt: int) -> Roster:
    """The roster of an attempt, once its signature was found to be of the pinned key.

    Args:
        terms: pinned on this device.
        arrays: as `sign_roster` made them.
        label, attempt: what this device is asked for.

    Raises:
        AggregationRefused: it is of another form or attempt, or of no size that the terms allow.
    """
    check(
        arrays,
        {
            "keys": ("uint8", (None, KEY_BYTES)),
            "users": ("uint32", (None,)),
            "signature": ("uint8", (SIGNATURE_BYTES,)),
        },
    )
    keys, users = arrays["keys"], arrays["users"]
    if len(keys) != len(users) or not terms.rules.min_nodes <= len(keys) <= terms.max_nodes:
        raise AggregationRefused(
            f"a roster of {len(keys)} keys and {len(users)} counts: expected {terms.rules.min_nodes} to "
            f"{terms.max_nodes} of each",
            Reason.COHORT,
        )
    if not 1 <= int(users.min()) <= int(users.max()) <= terms.max_users:
        raise AggregationRefused(
            f"a member of the roster speaks for {int(users.max())} users: expected 1 to {terms.max_users}",
            Reason.USERS,
        )
    signed = _signed(keys, users, terms.run, label, attempt)
    try:
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(terms.signer))
        signer.verify(arrays["signature"].tobytes(), signed)
    except InvalidSignature:
        raise AggregationRefused(
            f"the roster of attempt {attempt} at {label} is not signed by the key of this job",
            Reason.SIGNATURE,
        ) from None
    return roster_of(zip((row.tobytes() for row in keys), users.tolist(), strict=True))


def roster_of(members: Iterable[tuple[bytes, int]]) -> Roster:
    """The roster of (key [32], users) in order; members are named by their index.

    Raises:
        AggregationRefused: one key twice.
    """
    listed = [
        Member(name=str(k), key=key.hex(), users=users, vouched=users > 1)
        for k, (key, users) in enumerate(members)
    ]
    try:
        return Roster(members=tuple(listed))
    except ValidationError as error:
        raise AggregationRefused(
            "a roster names one key twice: expected one device each", Reason.COHORT
        ) from error


def _signed(keys: NDArray[np.uint8], users: NDArray[np.uint32], run: str, label: str, attempt: int) -> bytes:
    digest = hashlib.sha256(_LABEL)
    for part in (run.encode(), label.encode(), str(attempt).encode(), keys.tobytes(), users.tobytes()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
