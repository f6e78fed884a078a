"""How devices come to know of a job: a row in the database that front ends read, and the exchange to its cohorts.

Out of scope: answering devices (`fedrec_server.devices`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fedrec.core.messages import Exchange, Failure, Reply, Request
from fedrec_server.rounds.cohorts import Cohorts, Patience


@dataclass(frozen=True)
class Offer:
    """A run of a job, as devices are offered it.

    Attributes:
        id: 32 hexadecimal digits.
        population: whose devices.
        document: the signed task.
        target, least, most: of a cohort.
        cycle: rounds between two of one device; None: any.
    """

    id: str
    population: str
    document: bytes
    target: int
    least: int
    most: int
    cycle: int | None


class Offers(Protocol):
    """Where offers are made; each call may be made again."""

    def make(self, offer: Offer) -> None:
        """Devices may take part from now on."""

    def end(self, offer: str, state: str) -> None:
        """Devices may not take part, now or any more; one that was never made is passed over."""

    def open(
        self, offer: Offer, stop: Callable[[], bool], patience: Patience
    ) -> AbstractContextManager[tuple[Exchange, Cohorts]]:
        """The way to its cohorts; what an earlier process left of them is over."""


class NoSites:
    """An exchange to nodes that stay, where there are none."""

    def nodes(self) -> list[str]:
        """None."""
        return []

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """No one to ask."""
        return {}
