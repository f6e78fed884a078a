"""Cohorts: the devices of one attempt at one sum, formed of those that are here now.

A coordinator wants a cohort; what forms it (the device service) lets devices join under keys of their own and says
who came. A cohort is closed when its attempt is over, and its devices learn why and when to come back. Out of
scope: how devices join (`fedrec_server.devices`), and what is summed (`_cohort_collector`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from fedrec.core.messages import Exchange
from fedrec.secagg.roster import Identity

#: Seconds that a stage waits for its last devices at least.
LEAST_PATIENCE = 5.0
#: How a cohort ended, as its devices learn it: its sum was made; it has too few members for one; the attempt failed
#: for another reason; the job was ended or paused.
Ending = Literal["done", "too_few", "failed", "aborted"]


@dataclass(frozen=True)
class CohortSettings:
    """Of a job.

    Attributes:
        target: devices that are enough to start at once.
        least: devices with which to start when the time is over.
        wait_seconds: for which a cohort forms.
    """

    target: int
    least: int
    wait_seconds: float


@dataclass(frozen=True)
class Patience:
    """When a stage closes before its deadline, so that devices that fall silent do not cost all of it.

    Attributes:
        missing: part of the devices asked that may be missing then.
        factor: how often the time in which the others answered must have passed.
    """

    missing: float = 0.0
    factor: float = 2.0

    def seconds(self, asked: int, missing: int, passed: float) -> float | None:
        """After how long a stage may close, if `missing` of `asked` devices have not answered when so many seconds
        have passed; None: too many are missing to tell."""
        return max(self.factor * passed, passed + LEAST_PATIENCE) if missing <= self.missing * asked else None


@dataclass(frozen=True)
class CohortWanted:
    """What a coordinator asks for.

    Attributes:
        kind, phase, round: of the sum.
        target: devices that are enough to start at once.
        least: devices with which to start when the time is over.
        most: devices that may join.
        wait_seconds: for which a cohort forms.
    """

    kind: str
    phase: str
    round: int
    target: int
    least: int
    most: int
    wait_seconds: float


@dataclass(frozen=True)
class Joined:
    """A device that joined.

    Attributes:
        node: by which an exchange knows it.
        identity: [32] its Ed25519 public key, of this cohort alone.
        users: how many it hosts; 1 unless the operator vouches for more.
    """

    node: str
    identity: bytes
    users: int = 1


@dataclass(frozen=True)
class Cohort:
    """A cohort that is complete.

    Attributes:
        id: of it.
        members: in the order of the roster.
    """

    id: str
    members: tuple[Joined, ...]


class Cohorts(Protocol):
    """Forms cohorts, one at a time for each job."""

    def form(self, wanted: CohortWanted, stop: Callable[[], bool]) -> Cohort:
        """A complete cohort, the one that was prepared where there is one; waits until devices have joined.

        A prepared cohort serves whatever is wanted next: its devices learn the round from the first request.

        Args:
            wanted: of the coordinator.
            stop: asked many times a second; when true, no cohort is formed any more.

        Raises:
            AggregationAborted: too few joined in time, or it was stopped; those that had joined are notified.
        """

    def prepare(self, wanted: CohortWanted) -> None:
        """Let devices join the next cohort, while another is at work."""

    def close(self, cohort: Cohort, ending: Ending) -> None:
        """The attempt is over; devices that ask learn it, and when to come back. Again is free."""


@dataclass(frozen=True)
class Devices:
    """What reaches the devices of a job, and signs their rosters.

    Attributes:
        exchange: to devices of a cohort.
        cohorts: forms them.
        signer: its public key is in the terms.
        settings: of cohorts.
        sites: that take part beside devices, by the names under which they say hello, with the users for whom the
            operator vouches.
    """

    exchange: Exchange
    cohorts: Cohorts
    signer: Identity
    settings: CohortSettings
    sites: tuple[Joined, ...] = ()
