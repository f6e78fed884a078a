"""What a store holds of the campaigns that a device joined: its keys for each, how far it came, and good-byes.

    training/<campaign>   state "made" (its keys are), "enrolled" (the service has them), "started" (a session runs,
                          nothing was released) or "charged" (a release was paid for), and the secret keys
    leaving/<campaign>    a signed good-bye that the service has not heard yet; no secret

A device that finds "started" or "charged" when it is opened was cut off there: the keys go, so that nothing can be
answered under them any more. "started" has cost nothing, because the charge is on disk before a release leaves;
"charged" stays charged. Out of scope: sessions (`session`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from fedrec_client.store.base import Store
from fedrec_client.terms.participation import Book

KEYS, GOODBYES = "training/", "leaving/"
MADE, ENROLLED, STARTED, CHARGED = "made", "enrolled", "started", "charged"
#: Why a session ended that a device finds when it is opened.
CUT_OFF = "the app was closed or ended while it trained"


def read_keys(store: Store, campaign: str) -> dict[str, Any] | None:
    """The record of a campaign, or None."""
    known = store.get(KEYS + campaign)
    return None if known is None else dict(json.loads(known))


def write_keys(store: Store, campaign: str, keys: dict[str, Any]) -> None:
    """Put a record in the place of an earlier one."""
    store.put(KEYS + campaign, json.dumps(keys).encode())


def campaigns(store: Store) -> list[str]:
    """Those with keys."""
    return [name.removeprefix(KEYS) for name in store.names(KEYS)]


def leave(store: Store, campaign: str, *, goodbye: bool = True) -> None:
    """Remove the keys of a campaign; where the service had them, sign a good-bye first, if one is to be said."""
    keys = read_keys(store, campaign)
    with store.transaction():
        if goodbye and keys is not None and keys.get("state", MADE) != MADE:
            with suppress(KeyError, ValueError):  # a record without a key: removing it must not fail
                public, signature = signed_goodbye(campaign, keys)
                told = {"public": public.hex(), "signature": signature.hex()}
                store.put(GOODBYES + campaign, json.dumps(told).encode())
        store.remove(KEYS + campaign)


def leave_all(store: Store) -> None:
    """Every campaign: the user takes part no more."""
    for campaign in campaigns(store):
        leave(store, campaign)


def give_up_cut_off(store: Store, now: float) -> None:
    """End in the store what was cut off; see the module."""
    for campaign in campaigns(store):
        state = (read_keys(store, campaign) or {}).get("state")
        if state not in (STARTED, CHARGED):
            continue
        with store.transaction():
            leave(store, campaign)
            if state == CHARGED:
                Book(store).note("cut off", now, campaign=campaign)
            else:
                Book(store).note("ended", now, campaign=campaign, reason=CUT_OFF)


def goodbyes(store: Store) -> list[tuple[str, bytes, bytes]]:
    """Campaign, [32] public key and [64] signature of each good-bye."""
    found = []
    for name in store.names(GOODBYES):
        told = json.loads(store.get(name) or b"{}")
        found.append(
            (name.removeprefix(GOODBYES), bytes.fromhex(told["public"]), bytes.fromhex(told["signature"]))
        )
    return found


def forget_goodbye(store: Store, campaign: str) -> None:
    """It was heard."""
    store.remove(GOODBYES + campaign)


def signed_goodbye(campaign: str, keys: dict[str, Any]) -> tuple[bytes, bytes]:
    """[32] public key and [64] signature by which a device leaves a campaign."""
    # Imported when a device leaves: opening a store is to stay fast.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedrec.wire.leaving import sign_leaving

    secret = bytes.fromhex(keys["identity"])
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw(), sign_leaving(
        secret, campaign
    )
