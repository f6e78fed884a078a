"""Whether this device may take part in training now: decided here, told to no one.

Every condition that does not hold is named with a stable code. What the platform cannot tell counts as "no" unless
the condition is waived.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedrec_client.terms.consent import Consent
from fedrec_client.terms.participation import Book
from fedrec_client.terms.platform import Platform
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.results import Eligibility

DAY = 86_400.0


@dataclass(frozen=True)
class Conditions:
    """What must hold; a False waives it.

    Attributes:
        charging, idle, unmetered: of the device.
        min_events: items in the history, at least.
        min_period_seconds: since this device last took part.
        min_free_bytes: room for the session.
    """

    charging: bool = True
    idle: bool = True
    unmetered: bool = True
    min_events: int = 5
    min_period_seconds: float = DAY
    min_free_bytes: int = 64 << 20


@dataclass(frozen=True)
class Device:
    """What eligibility looks at.

    Attributes:
        consent: of the user.
        platform: of the device.
        folder: where a session would write.
        history: items known of the user.
        model_state: "good" or what is wrong.
        now: seconds since 1970.
    """

    consent: Consent
    platform: Platform
    folder: Path
    history: int
    model_state: str
    now: float


def eligible(device: Device, book: Book, policy: Policy, conditions: Conditions) -> Eligibility:
    """All reasons against, or none."""
    reasons = tuple(_reasons(device, book, policy, conditions))
    return Eligibility(not reasons, reasons)


def _reasons(device: Device, book: Book, policy: Policy, conditions: Conditions) -> Iterator[str]:
    if not device.consent.train:
        yield "consent: the user has not agreed to training"
    if device.model_state != "good":
        yield f"model: {device.model_state}; check for an update"
    for name, answer in (
        ("charging", device.platform.charging),
        ("idle", device.platform.idle),
        ("unmetered", device.platform.unmetered),
    ):
        if getattr(conditions, name) and (state := answer()) is not True:
            yield f"{name}: {'the platform cannot tell' if state is None else 'not now'}"
    if device.history < conditions.min_events:
        yield f"data: {device.history} items in the history, {conditions.min_events} are needed"
    if device.platform.free_bytes(device.folder) < conditions.min_free_bytes:
        yield f"space: less than {conditions.min_free_bytes >> 20} MiB free"
    last = book.last_time
    if math.isfinite(last) and device.now - last < conditions.min_period_seconds:
        # A clock that was put back makes this longer, never shorter.
        ago = max(device.now - last, 0.0)
        yield f"period: took part {ago:.0f} s ago, {conditions.min_period_seconds:.0f} s must lie between"
    yield from policy.exhausted(book, device.now)
