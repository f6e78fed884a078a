"""What the SDK asks of a model service, whatever carries it: gRPC, plain HTTPS files, or a fake in the same process.

Nothing here is trusted: what is fetched is signed metadata or is held against hashes in it, and what is sent says
nothing of the user. Every call may raise ServiceError (ServerBusy with the time to come back).
Out of scope: checking what came (`trusted_metadata`, `model_updates`, `policy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    """

    population: str
    client_version: str
    model_version: int


@dataclass(frozen=True)
class CheckInAnswer:
    """When to ask again.

    Attributes:
        retry_after_seconds: come back after between these many seconds.
    """

    retry_after_seconds: tuple[float, float]


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
