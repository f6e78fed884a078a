"""What a user did, as the app tells it: typed, immutable, with ids that make telling twice harmless.

Out of scope: where events are kept (`store`), and what they mean to a model beyond `weight`.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fedrec.core.errors import DataError

Scalar = str | int | float | bool
MAX_TEXT = 256
MAX_CONTEXT = 32
#: Ratings at or below this, on a scale from 0 to 5, speak against an item.
LOW_RATING = 2.5
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class EventType(StrEnum):
    """What happened to an item."""

    IMPRESSION = "impression"
    VIEW = "view"
    PLAY = "play"
    PURCHASE = "purchase"
    LIKE = "like"
    DISLIKE = "dislike"
    RATING = "rating"
    HIDE = "hide"
    CUSTOM = "custom"


#: How much an event says for its item; ratings say it by their value.
WEIGHTS = {
    EventType.IMPRESSION: 0.0,
    EventType.VIEW: 1.0,
    EventType.PLAY: 1.0,
    EventType.PURCHASE: 1.0,
    EventType.LIKE: 1.0,
    EventType.DISLIKE: -1.0,
    EventType.HIDE: -1.0,
    EventType.CUSTOM: 0.0,
}


@dataclass(frozen=True)
class Event:
    """One thing that a user did.

    Attributes:
        type: what.
        item: the app's own id of the item.
        time: seconds since 1970.
        id: unique; the same id again is the same event.
        value: a rating from 0 to 5, seconds played, a price; None where there is none.
        recommendation: id of the recommendation in which the item was shown.
        name: of a custom event.
        context: small facts that stay on the device.
        stamped: the time is that of this device's clock when it was told, not the app's own word.
    """

    type: EventType
    item: str
    time: float
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    value: float | None = None
    recommendation: str | None = None
    name: str | None = None
    context: Mapping[str, Scalar] = field(default_factory=dict)
    stamped: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.item, str) or not 0 < len(self.item) <= MAX_TEXT:
            raise DataError(f"item {self.item!r:.80}: expected a text of 1 to {MAX_TEXT} characters")
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise DataError(
                f"event id {self.id!r:.80}: expected 1 to 64 letters, digits and _.:-, the same for the same event"
            )
        if not math.isfinite(self.time) or (self.value is not None and not math.isfinite(self.value)):
            raise DataError(f"event of item {self.item!r:.80}: expected a finite time and value")
        if self.type is EventType.RATING and self.value is None:
            raise DataError(f"rating of item {self.item!r:.80} has no value: give value= from 0 to 5")
        if (self.type is EventType.CUSTOM) != (self.name is not None):
            raise DataError("a name is for events of type 'custom', which need one: give type or name")
        if len(self.context) > MAX_CONTEXT:
            raise DataError(f"context of {len(self.context)} fields: expected at most {MAX_CONTEXT}")

    @classmethod
    def of(
        cls, type: str | EventType, item: str, time: float, *, id: str | None = None, **facts: Any
    ) -> Event:
        """An event as an app tells it; without an id it gets a fresh one.

        Raises:
            DataError: it cannot be one.
        """
        try:
            kind = EventType(type)
        except ValueError as error:
            raise DataError(
                f"event type {type!r:.40}: expected one of {', '.join(each.value for each in EventType)}"
            ) from error
        if id is not None:
            facts["id"] = id
        return cls(kind, item, time, **facts)

    @property
    def weight(self) -> float:
        """How much it says for the item: positive for, negative against, zero nothing."""
        if self.type is EventType.RATING:
            assert self.value is not None
            return 1.0 if self.value > LOW_RATING else -1.0
        return WEIGHTS[self.type]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without fields that are empty."""
        plain = vars(self) | {"type": self.type.value, "context": dict(self.context)}
        if not self.stamped:
            del plain["stamped"]
        return {name: value for name, value in plain.items() if value not in (None, {})}

    def to_bytes(self) -> bytes:
        """Compact JSON."""
        return json.dumps(self.to_json(), separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes | Mapping[str, Any]) -> Event:
        """The event of `to_bytes` or `to_json`.

        Raises:
            DataError: it is not one.
        """
        try:
            plain = dict(data) if isinstance(data, Mapping) else json.loads(data)
            return cls(**plain | {"type": EventType(plain["type"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no event ({error}): expected the fields of Event with type and item") from error
