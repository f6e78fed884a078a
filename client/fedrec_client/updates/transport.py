"""What the SDK asks of a model service, whatever carries it: gRPC, plain HTTPS files, or a fake in the same process.

Nothing here is trusted: what is fetched is signed metadata or is held against hashes in it, and what is sent says
nothing of the user. Every call may raise ServiceError (ServerBusy with the time to come back).
Out of scope: checking what came (`trusted_metadata`, `model_updates`, `policy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

#: Folder of the metadata that is being verified, beside the versions of a model.
WORKING = ".metadata"


@dataclass(frozen=True)
class CheckIn:
    """A device asks what there is for it.

    Attributes:
        population: whose models.
        client_version: of this SDK.
        model_version: the version in use; 0: none.
        trains: the user has agreed to take part in training, and the device is eligible now.
    """

    population: str
    client_version: str
    model_version: int
    trains: bool = False


@dataclass(frozen=True)
class CheckInAnswer:
    """What there is.

    Attributes:
        retry_after_seconds: come back after between these many seconds.
        campaign: id of a training campaign that devices can enrol in; empty: none.
    """

    retry_after_seconds: tuple[float, float]
    campaign: str = ""


@dataclass(frozen=True)
class Enrolment:
    """A device joins a campaign under keys made for it alone.

    Attributes:
        campaign: id.
        identity: [32] Ed25519 public key for secure aggregation.
        node_key: public key of the SuperNode, one line in OpenSSH's form.
        users: users on this device.
        token: of the app's own login, where the operator asks for one; single use.
    """

    campaign: str
    identity: bytes
    node_key: str
    users: int = 1
    token: str = field(default="", repr=False)


class Transport(Protocol):
    """One connection to one service; safe for several threads.

    Attributes:
        takes_counters: whether `send_metrics` sends anything.
    """

    takes_counters: bool

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """What there is for this device."""
        ...

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """A public file of a repository from `offset` on, in pieces.

        Args:
            population: whose.
            path: "metadata/..." or "targets/...".
            offset: in bytes.

        Raises:
            NotPublished: there is no such file.
            ServiceError: it cannot be fetched now.
        """
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
