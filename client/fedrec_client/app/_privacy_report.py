"""The report to the user: what left this device, when, how protected, and what it cost of the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from fedrec_client.store.base import Store
from fedrec_client.terms.consent import Consent, consent_history
from fedrec_client.terms.metrics_budget import spent as metrics_spent
from fedrec_client.terms.participation import Book, Spent
from fedrec_client.terms.policy import Policy


@dataclass(frozen=True)
class PrivacyReport:
    """See the module.

    Attributes:
        consent: as it is now.
        consent_history: every change.
        left: what left the device, oldest first: rounds of training and counters, with bytes. A round that was
            charged is here from the charge on: as "sent", as "cut off" (it is not known how much left), or as
            "under way".
        ended: training sessions that released nothing and cost nothing, with the reason.
        charged: rounds that were charged, with job, unit, epsilon, delta and aggregator.
        refused: tasks that this device would not take part in, with the reasons.
        period, lifetime: what was spent.
        limits: of the app's policy: epsilon per period and lifetime, for training and counters, days of a period.
        metrics_epsilon, metrics_epsilon_period: spent on counters, apart from training, over the lifetime and in
            the period.
        key: how the data on this device is protected.
        events: how many are kept here.
    """

    consent: Consent
    consent_history: tuple[dict[str, Any], ...]
    left: tuple[dict[str, Any], ...]
    ended: tuple[dict[str, Any], ...]
    charged: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, Any], ...]
    period: Spent
    lifetime: Spent
    limits: dict[str, float]
    metrics_epsilon: float
    metrics_epsilon_period: float
    key: str
    events: int

    @property
    def bytes_up(self) -> int:
        """All that ever left."""
        return sum(int(entry.get("bytes", 0)) for entry in self.left)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as text."""
        return {name: _plain(value) for name, value in asdict(self).items()} | {"bytes_up": self.bytes_up}

    def as_text(self) -> str:
        """For users."""
        answers = {True: "yes", False: "no"}
        lines = [
            f"Events kept on this device: {self.events}. They never leave it. Key: {self.key}.",
            f"Personal recommendations: {answers[self.consent.personalize]}. "
            f"Training: {answers[self.consent.train]}. Counters: {answers[self.consent.metrics]}.",
            "",
        ]
        if not self.left:
            lines.append("Nothing has left this device.")
        for entry in self.left:
            lines.append(f"{_date(entry['time'])}: {_told(entry)}")
        for entry in self.ended:
            lines.append(
                f"{_date(entry['time'])}: training ended before anything was released, nothing was charged: "
                f"{entry['reason']}"
            )
        for entry in self.refused:
            lines.append(f"{_date(entry['time'])}: refused to train: {'; '.join(entry['reasons'])}")
        days = self.limits["period_days"]
        lines += [
            "",
            f"Privacy budget: epsilon {_number(self.period.epsilon)} of {self.limits['period']:g} in the last "
            f"{days:g} days, {_number(self.lifetime.epsilon)} of {self.limits['lifetime']:g} for life "
            f"(delta {self.lifetime.delta:.1e}, {self.lifetime.rounds} rounds).",
        ]
        if self.metrics_epsilon:
            lines.append(
                f"Counters: epsilon {_number(self.metrics_epsilon_period)} of {self.limits['metrics_period']:g} in "
                f"the last {days:g} days, {_number(self.metrics_epsilon)} of {self.limits['metrics_lifetime']:g} "
                "for life; no more leave beyond."
            )
        return "\n".join(lines)


def make_report(store: Store, consent: Consent, policy: Policy, now: float) -> PrivacyReport:
    """From the store's books."""
    book = Book(store)
    state = store.describe()
    return PrivacyReport(
        consent,
        tuple(consent_history(store)),
        tuple(_left(book)),
        tuple(book.entries("ended")),
        tuple(book.entries("charged")),
        tuple(book.entries("refused")),
        book.spent_within(policy.period_seconds, now),
        book.spent(),
        {
            "period": policy.max_epsilon_period,
            "lifetime": policy.max_epsilon_lifetime,
            "metrics_period": policy.max_metrics_epsilon_period,
            "metrics_lifetime": policy.max_metrics_epsilon_lifetime,
            "period_days": policy.period_seconds / 86_400,
        },
        metrics_spent(book),
        metrics_spent(book, now - policy.period_seconds),
        str(state["key"]),
        int(state["events"]),
    )


def _left(book: Book) -> Iterator[dict[str, Any]]:
    """Entries of what left; a charge without a word of its end stands for what may have left since."""
    entries = book.entries()
    over = {_session(entry): entry for entry in entries if entry["what"] in ("sent", "cut off")}
    for entry in entries:
        match entry["what"]:
            case "charged":
                end = over.get(_session(entry), {"what": "under way"})
                if end["what"] != "sent":
                    shown = ("time", "job", "round", "aggregator")
                    yield {name: entry[name] for name in shown if name in entry} | {"what": end["what"]}
            case "sent" | "metrics":
                yield entry


def _session(entry: dict[str, Any]) -> tuple[str, int]:
    return str(entry.get("job", "")), int(entry.get("round", 0))


def _told(entry: dict[str, Any]) -> str:
    if entry["what"] == "metrics":
        return f"{entry['bytes']} bytes of counters with noise (epsilon {entry['epsilon']:g})"
    how = {
        "secagg": "encrypted so that only the sum over all devices can be read",
        "sealed": "encrypted for the service, which adds it up",
    }.get(str(entry.get("aggregator")), "readable by the service")
    if entry["what"] != "sent":
        state = "is under way" if entry["what"] == "under way" else "was cut off"
        return f"round {entry['round']} of training job {entry['job'][:8]} {state}: an update may have left, {how}"
    return f"{entry['bytes']:,} bytes of a training update, round {entry['round']} of job {entry['job'][:8]}, {how}"


def _date(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "unknown (the book was damaged)"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
