"""What a user has agreed to; asked inside every call, so that no caller can forget it.

The last word counts, whatever the clock said when it was given. After a repair that may have brought back an older
word, or lost one, nothing is agreed to until the user is asked again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from fedrec.core.errors import ConsentRequired, StoreCorrupt
from fedrec_client.store.base import Store
from fedrec_client.store.repair import last_loss

RECORD, LOG = "consent", "consent"


@dataclass(frozen=True)
class Consent:
    """Three separate questions.

    Attributes:
        personalize: keep events on this device and use them for recommendations here; nothing leaves.
        train: take part in training; what leaves is a protected, securely aggregated update.
        metrics: send a few counters with noise once a day.
    """

    personalize: bool = True
    train: bool = False
    metrics: bool = False

    def need(self, what: str) -> None:
        """Go on only when the user has agreed.

        Raises:
            ConsentRequired: the user has not.
        """
        if not getattr(self, what):
            raise ConsentRequired(
                f"{what} needs consent: ask the user, then set_consent(Consent({what}=True, ...))"
            )


#: Nothing is kept and nothing leaves.
NOTHING = Consent(personalize=False, train=False, metrics=False)


def both(one: Consent, other: Consent) -> Consent:
    """What two words agree on."""
    return Consent(**{name: getattr(one, name) and getattr(other, name) for name in asdict(one)})


def read_consent(store: Store) -> Consent:
    """As it was last set; what is off by default stays off.

    Raises:
        StoreCorrupt: the record is not one.
    """
    data, loss = store.get(RECORD), last_loss(store)
    if data is None:
        return NOTHING if loss else Consent()
    try:
        plain = json.loads(data)
        if plain["loss"] != loss:
            return NOTHING
        return Consent(**{name: bool(plain[name]) for name in asdict(Consent())})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt("the consent record cannot be read: set consent anew") from error


def write_consent(store: Store, consent: Consent, now: float) -> None:
    """Set it, and note when."""
    plain = asdict(consent)
    with store.transaction():
        store.put(RECORD, json.dumps(plain | {"loss": last_loss(store)}).encode())
        store.append(LOG, json.dumps({"time": now} | plain).encode())


def consent_history(store: Store) -> list[dict[str, object]]:
    """All changes, oldest first."""
    return [json.loads(entry) for entry in store.entries(LOG)]
