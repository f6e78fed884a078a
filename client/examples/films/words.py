"""What the app says to its people when something does not happen: about them and their devices, never about settings.

Errors and reasons of the SDK and of the service are for developers and operators: they name fields, addresses and
settings. They are told here by what they mean for the person. Out of scope: the log of the service's steps
(`federation`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fedrec.core.errors import (
    ConsentRequired,
    DataError,
    FedrecError,
    RegistryError,
    ServerBusy,
    ServiceError,
    StoreError,
    StoreFull,
    UpdateRejected,
)
from fedrec_client.terms.results import TrainingReport
from films.device import CONDITIONS


class NotNowError(RegistryError):
    """Said by this app in words for its people."""


#: Why a device does not train now, by the code of `fedrec_client.terms.eligibility`.
NOT_NOW = {
    "consent": "Training together is not agreed to",
    "model": "It has no current model: check for an update",
    "charging": "It is not charging",
    "idle": "Somebody uses it",
    "unmetered": "It is not on Wi-Fi",
    "data": f"Too little is rated here: {CONDITIONS.min_events} films are needed",
    "space": "It has too little room",
    "period": "It has trained a short while ago",
    "budget": "The privacy budget that this app allows is spent",
}
#: Why a device refused a task, by the code of `fedrec_client.terms.policy`.
REFUSED = {
    "cohort": "Too few people take part to hide among them",
    "budget": "It would cost more of the privacy budget than this app allows",
    "privacy": "It does not say how updates are protected, or not well enough",
    "unit": "It would protect single ratings, not the whole person",
    "trust": "The service would have to be trusted with the noise",
    "delta": "The chance that the protection fails would be too large",
    "aggregator": "The service could read single updates",
    "noise": "The devices together would add too little noise",
}
#: The SDK's reason when there is nothing to take part in yet.
NO_JOB = "there is no job now"
#: How a session ended, by the beginning of the SDK's reason.
ENDED = {
    "done": "all rounds were done",
    "stopped": "it was stopped",
    "too few devices": "the others were too few to hide among each other",
    "the round failed": "something failed on the service",
    "this device was too late": "the others had begun without it",
    "the round has enough devices": "the others were enough",
    "the job was stopped": "the service stopped it",
    "the job is over": "the others were done",
    "the round is over": "the others were done",
    "this device has done its part": "it has done its part already",
    "the server could not be reached": "the service could not be reached",
    "the server sent something": "the service sent something that the device does not accept",
    "this device refused": "the device refused what the service asked",
    "the deadline has passed": "it took too long",
    NO_JOB: "there was nothing to train",
    "no cohort formed": "the others did not come",
    "nothing left, because the charge cannot be kept": "the budget could not be written down on the device",
    "not eligible": "the device cannot train now",
    "refused": "the app's limits do not allow it",
}
#: What a device does, by the step of the SDK.
STEPS = {
    "waiting": "asks to take part",
    "joined": "has joined; waits for the others",
    "train": "computes its update on its own ratings",
    "confirm": "has sent its update, encrypted: only a sum of all can be read",
}


def not_now(reasons: Sequence[str]) -> list[tuple[str, str]]:
    """Sentence and code for each reason why a device does not train now."""
    codes = [reason.partition(":")[0] for reason in reasons]
    return [(NOT_NOW.get(code, "It cannot now"), code) for code in dict.fromkeys(codes)]


def refused(reasons: Sequence[str]) -> list[str]:
    """Sentences for why a device refused a task."""
    codes = (reason.partition(":")[0] for reason in reasons)
    return list(dict.fromkeys(REFUSED.get(code, "It does not keep to this app's limits") for code in codes))


def ended(reason: str) -> str:
    """How a session ended."""
    return next((words for start, words in ENDED.items() if reason.startswith(start)), "it was cut off")


def took_part(report: TrainingReport) -> str:
    """What a session cost and how it ended, in one line."""
    how = ended(report.reason)
    if not report.epsilon_spent:
        return f"did not train: {how}; nothing left that tells anything, nothing was charged"
    if not report.joined:
        return (
            f"began to train: epsilon {report.epsilon_spent:,.0f} was charged when its encrypted update was to "
            f"leave, and it did not arrive; {how}"
        )
    rounds = "1 round" if report.rounds == 1 else f"{report.rounds} rounds"
    return (
        f"took part in {rounds}: {report.bytes_up:,} encrypted bytes left, epsilon {report.epsilon_spent:,.0f} in "
        f"all, charged update by update before it left; {how}"
    )


def together(steps: Collection[str], devices: int) -> str:
    """How far the devices of a round are, in one line.

    Args:
        steps: the last one of each device, see `Client.train_if_eligible`.
        devices: that take part.
    """
    sent = sum(step in ("confirm", "unmask") for step in steps)
    if sent:
        return f"{sent} of {devices} encrypted updates sent"
    if "train" in steps:
        return "Each device computes its update"
    if {"advertise", "share"} & set(steps):
        return "The devices agree on how to hide their updates in the sum"
    joined = sum(step == "joined" for step in steps)
    return f"{joined} of {devices} devices joined; waiting for {devices - joined} others"


def trouble(error: FedrecError) -> str:
    """What an error means for the person whose device met it."""
    match error:
        case NotNowError() | DataError():
            return str(error)
        case ConsentRequired():
            return "Switch on personal recommendations first: without it nothing is kept."
        case ServerBusy():
            return "The service is busy. Your list goes on; try again later."
        case ServiceError():
            return "The service cannot be reached now. Your list goes on without it."
        case UpdateRejected():
            return (
                "What the service sent is not what it should be. It was refused; your list goes on as before."
            )
        case StoreFull():
            return "There is no room left on this device: nothing was changed."
        case StoreError():
            return "What this device keeps cannot be read or written now."
        case _:
            return "That did not work on this device."


def without_a_model(devices: int, joined: int, reports: Mapping[str, TrainingReport | None]) -> str:
    """How training together ended that brought no new model.

    Args:
        devices: that were to take part.
        joined: of them, that came at all.
        reports: of the devices by the name of the person; None: the device could not say.
    """
    stopped = sum(report is not None and report.reason == "stopped" for report in reports.values())
    if joined < devices:
        why = f"Only {joined} of {devices} devices came"
    elif stopped:
        why = f"{stopped} of {devices} devices stopped, and the others are too few to hide among each other"
    else:
        why = "Not enough devices answered in time"
    return f"{why}. There is no new model. {_spent(reports)}"


def _spent(reports: Mapping[str, TrainingReport | None]) -> str:
    paid = [name for name, report in reports.items() if report is not None and report.epsilon_spent > 0]
    unknown = [name for name, report in reports.items() if report is None]
    if not paid and not unknown:
        return "Nothing left the devices that tells anything, and nothing was spent."
    parts = []
    if paid:
        parts.append(f"Encrypted messages had left {_names(paid)}: what they cost stays spent.")
    if unknown:
        parts.append(f"See the privacy page of {', '.join(unknown)}.")
    return " ".join(parts)


def _names(names: Sequence[str]) -> str:
    devices = [f"{name}'s" for name in names]
    together = " and ".join([", ".join(devices[:-1]), devices[-1]] if len(devices) > 1 else devices)
    return f"{together} device{'s' if len(devices) > 1 else ''}"
