"""A repository on any web server: the registry's `public` folder, handed out as plain files over HTTPS.

No service runs there, so there are no counters: devices get models and nothing else. Plain HTTP is
for loopback alone. Redirects are not followed. What comes is not believed here (`trusted_metadata`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fedrec.core.errors import NotPublished, ServerBusy, ServiceError
from fedrec_client.updates.transport import CheckIn, CheckInAnswer

CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
#: A connection that breaks loses no more than so much of what came.
PIECE_BYTES = 16 << 10
#: Devices come back after a time between these.
RETRY_SECONDS = (3_600.0, 7_200.0)
BUSY_SECONDS = (60.0, 120.0)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HttpsFiles:
    """A `Transport` over plain files.

    Args:
        url: of the folder that holds `metadata/` and `targets/`, e.g. "https://cdn.example.org/movies-en".
        ca: certificate authority of the server (PEM file); None: those of the system.

    Raises:
        ServiceError: the address is not one of HTTPS (or of HTTP on loopback), or the file cannot be read.
    """

    takes_counters = False

    def __init__(self, url: str, *, ca: str | Path | None = None) -> None:
        import urllib3

        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            raise ServiceError(f"{url!r:.120}: expected https://... (http:// on loopback only)")
        if ca is not None and not Path(ca).expanduser().is_file():
            raise ServiceError(f"{ca} cannot be read: give a PEM file")
        settings: dict[str, Any] = {} if ca is None else {"ca_certs": str(Path(ca).expanduser())}
        self._url = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            num_pools=1,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            retries=urllib3.Retry(connect=2, read=0, redirect=False, status=0, other=0),
            **settings,
        )

    def fetch(self, population: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """See `Transport`."""
        from urllib3.exceptions import HTTPError

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            answer = self._pool.request(
                "GET",
                f"{self._url}/{quote(path, safe='/%')}",
                headers=headers,
                preload_content=False,
                redirect=False,
            )
            try:
                skip = self._evaluate(answer.status, path, offset)
                for piece in answer.stream(PIECE_BYTES):
                    cut = min(skip, len(piece))
                    skip -= cut
                    if piece[cut:]:
                        yield piece[cut:]
            finally:
                answer.close()
        except HTTPError as error:
            raise ServiceError(
                f"{self._url}: {type(error).__name__}; check the address, the certificate and the network, then try "
                "again"
            ) from error

    def check_in(self, request: CheckIn) -> CheckInAnswer:
        """See `Transport`; nothing is sent."""
        return CheckInAnswer(RETRY_SECONDS)

    def send_metrics(
        self, population: str, model_version: int, counters: Mapping[str, float], token: str
    ) -> None:
        """See `Transport`; a web server adds nothing up, so nothing is sent."""

    def close(self) -> None:
        """See `Transport`."""
        self._pool.clear()

    def _evaluate(self, status: int, path: str, offset: int) -> int:
        """How many bytes of the answer were there already: a server may send all of a file whatever it is asked.

        Raises:
            NotPublished, ServerBusy, ServiceError: by its status.
        """
        if status == 206 and offset:
            return 0
        if status == 200:
            return offset
        if status in (403, 404):
            raise NotPublished(f"{self._url} has no {path!r:.120}")
        if status in (429, 503):
            raise ServerBusy(f"{self._url}: status {status}; come back later", BUSY_SECONDS)
        raise ServiceError(f"{self._url}: status {status} for {path!r:.120}; check the address")
