"""What python-tuf's client fetches comes through our transport: a model service, a web server, a folder of the app.

Targets are kept while they come, so that a download goes on where an earlier one was cut off; metadata is small and
is fetched anew. Nothing is believed here: length and hashes are checked by the updater, which bounds what may come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient import FetcherInterface

from fedrec.core.errors import NotPublished
from fedrec.wire.layout import METADATA_FOLDER, TARGETS_FOLDER
from fedrec_client.updates.transport import Transport

#: Addresses that the updater builds begin so; what follows is the path that a transport is asked for.
BASE = "repository:"
METADATA_URL, TARGETS_URL = f"{BASE}{METADATA_FOLDER}/", f"{BASE}{TARGETS_FOLDER}/"


class TransportFetcher(FetcherInterface):
    """See the module.

    Args:
        transport: asked for files.
        population: whose.
        partial: folder for targets that have not come whole.

    Attributes:
        came: bytes of targets that were fetched.
    """

    def __init__(self, transport: Transport, population: str, partial: Path) -> None:
        self._transport, self._population, self._partial = transport, population, partial
        self.came = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        """All of a file, in pieces."""
        return self._pieces(url.removeprefix(BASE), 0)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """A file of at most so many bytes, open for reading; of a target, what came earlier counts.

        Raises:
            DownloadLengthMismatchError: it is longer.
            DownloadHTTPError: there is none.
            ServiceError, OSError: it could not be fetched or kept; what came is kept for the next attempt.
        """
        path = url.removeprefix(BASE)
        if not path.startswith(f"{TARGETS_FOLDER}/"):
            with super().download_file(url, max_length) as file:
                yield file
            return
        kept = self._kept(path)
        self._partial.mkdir(parents=True, exist_ok=True)
        have = kept.stat().st_size if kept.exists() else 0
        if have > max_length:
            kept.unlink()
            have = 0
        if have < max_length or not kept.exists():
            self._continue(path, kept, have, max_length)
        with kept.open("rb") as file:
            yield file

    def forget(self, url: str) -> None:
        """Remove what came of a target: it is whole and wrong."""
        self._kept(url.removeprefix(BASE)).unlink(missing_ok=True)

    def _continue(self, path: str, kept: Path, have: int, max_length: int) -> None:
        with kept.open("ab") as file:
            for piece in self._pieces(path, have):
                have += len(piece)
                self.came += len(piece)
                if have > max_length:
                    raise DownloadLengthMismatchError(f"{have} bytes came, {max_length} were signed")
                file.write(piece)

    def _pieces(self, path: str, offset: int) -> Iterator[bytes]:
        try:
            yield from self._transport.fetch(self._population, path, offset)
        except NotPublished as error:
            raise DownloadHTTPError(str(error), 404) from error

    def _kept(self, path: str) -> Path:
        """By its last part, which begins with the signed hash."""
        return self._partial / path.rpartition("/")[2]
