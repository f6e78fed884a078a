"""What the SDK asks of a model service, whatever carries it: gRPC, or a fake in the same process.

Nothing here is trusted: manifests and tasks are signed documents, files are held against hashes in them, and what is
sent says nothing of the person. Every call may raise ServiceError (ServerBusy with the time to come back).
Out of scope: checking what came (`model_updates`, `policy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class CheckIn:
    """A device asks what there is for it.

    Attributes:
        population: whose models.
        token: random, anew at least every day; serves traffic shares, and links nothing beyond its life.
        client_version: of this SDK.
        model_version: the version in use; 0: none.
        trains: the person has agreed to take part in training, and the device is eligible now.
    """

    population: str
    token: str
    client_version: str
    model_version: int
    trains: bool = False


@dataclass(frozen=True)
class CheckInAnswer:
    """What there is.

    Attributes:
        model_version: to use; 0: none yet.
        retry_after_seconds: come back after between these many seconds.
        campaign: id of a training campaign that devices can enrol in; empty: none.
    """

    model_version: int
    retry_after_seconds: tuple[float, float]
    campaign: str = ""


@dataclass(frozen=True)
class Enrolment:
    """A device joins a campaign under keys made for it alone.

    Attributes:
        campaign: id.
        identity: [32] Ed25519 public key for secure aggregation.
        node_key: public key of the SuperNode, one line in OpenSSH's form.
        users: people on this device.
        token: of the app's own login, where the operator asks for one; single use.
    """

    campaign: str
    identity: bytes
    node_key: str
    users: int = 1
    token: str = field(default="", repr=False)


class Transport(Protocol):
    """One connection to one service; safe for several threads."""

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """What there is for this device."""
        ...

    def manifest(self, population: str, version: int) -> bytes:
        """The signed manifest of a model."""
        ...

    def download(self, population: str, version: int, file: str, offset: int = 0) -> Iterator[bytes]:
        """A file of a model from `offset` on, in pieces."""
        ...

    def enrol(self, enrolment: Enrolment) -> None:
        """Join a campaign; the same keys again change nothing.

        Raises:
            CampaignOver: its roster is closed or full.
        """
        ...

    def task(self, campaign: str, identity: bytes) -> bytes | None:
        """The signed task of a campaign for an enrolled device; None while the roster is open.

        Raises:
            CampaignOver: it has ended.
        """
        ...

    def goes_on(self, campaign: str, identity: bytes) -> bool:
        """Whether a campaign in which this device takes part has not ended."""
        ...

    def leave(self, campaign: str, identity: bytes, signature: bytes) -> None:
        """This device has left a campaign; `signature` as in `fedrec.wire.leaving`. Not tried again."""
        ...

    def send_metrics(
        self, population: str, model_version: int, counters: Mapping[str, float], token: str
    ) -> None:
        """Counters that were randomised on the device; the service adds them up and keeps nothing else.

        Args:
            population: whose.
            model_version: in use; 0: none.
            counters: within the bounds of `fedrec.wire.counters`.
            token: random, of this report: the same report again is counted once.
        """
        ...

    def close(self) -> None:
        """Let the connection go."""
        ...
