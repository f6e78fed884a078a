"""A repository in a folder on this device: the start model that an app brings with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedrec.core.errors import BadContent, NotPublished, ServiceError
from fedrec.wire.layout import METADATA_FOLDER, SIGNED_AT
from fedrec_client.updates.transport import CheckIn, CheckInAnswer

PIECE_BYTES = 256 << 10


class FolderFiles:
    """A `Transport` that hands out files and nothing else.

    Args:
        folder: written by `fedrec-server model bundle`.
    """

    takes_counters = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def signing_time(self) -> float:
        """When the metadata says it was signed; that it says so is verified with its signature.

        Raises:
            BadContent: it cannot be read.
        """
        path = self._folder / METADATA_FOLDER / "timestamp.json"
        try:
            return float(json.loads(path.read_bytes())["signed"][SIGNED_AT])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadContent(
                f"start model {self._folder} cannot be read ({error!r:.80}): run `fedrec-server model bundle`"
            ) from error

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`."""
        if ".." in path.split("/"):
            raise NotPublished(f"{path!r:.80} leads out of the start model")
        try:
            with (self._folder / path).open("rb") as file:
                file.seek(offset)
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except OSError as error:
            raise NotPublished(f"the start model has no {path!r:.120} ({error.strerror})") from error

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """See `Transport`; a folder has no service."""
        return CheckInAnswer((0.0, 0.0))

    def send_metrics(
        self, population: str, model_version: int, counters: Mapping[str, float], token: str
    ) -> None:
        """See `Transport`."""
        raise ServiceError("a folder takes no counters: give the address of a model service")

    def close(self) -> None:
        """See `Transport`."""
