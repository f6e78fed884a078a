"""Why a device refuses a step of secure aggregation: one word per rule, the same in errors, tests and statistics."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """See the explanation page "secure aggregation" for the attack behind each rule."""

    # What the device was asked to join.
    COHORT = "cohort"  # fewer devices than its minimum, or an impossible list of them
    USERS = "users"  # the devices left speak for fewer users than the privacy plan's noise was sized for
    THRESHOLD = "threshold"  # a threshold that two disjoint groups could reach
    CONTEXT = "context"  # run, round, attempt or terms are not this device's
    REPLAY = "replay"  # an attempt that was seen before, or a round whose shares were given away
    MODEL = "model"  # the model that came is not the one that was announced
    # Whom it would be talking to.
    IDENTITY = "identity"  # someone who is not in the pinned roster
    SIGNATURE = "signature"  # a signature that does not fit its owner and this attempt
    ADVERT = "advert"  # its own keys were changed, or two adverts of one device
    # The order of things.
    STAGE = "stage"  # a stage out of order
    ANSWERED = "answered"  # a stage that was answered, asked again with other content
    FORGOTTEN = "forgotten"  # the secrets of the attempt are gone
    # What came.
    CIPHERTEXT = "ciphertext"  # shares that were changed, sent to another device, or are of another attempt
    SHARERS = "sharers"  # shares are missing, or are of others than the list says
    SURVIVORS = "survivors"  # the list of survivors is impossible, too short, or leaves this device out
    CONSENT = "consent"  # too few neighbours signed this list of survivors
    FORMAT = "format"  # a message with other parts, types or sizes than expected
    # What a run may ask for.
    SCHEDULE = "schedule"  # a sum that the terms do not list, or list once and that was let out
    DIFFERENCE = "difference"  # participants too close to those of an earlier exact sum
    PROMISES = "promises"  # the record of earlier sums is missing or damaged
    # Settings, never data: what a device computes is clamped, and cannot lead to a refusal.
    RANGE = "range"  # more users than the integers have room for, or no bound for an update
