"""What a node is about to send, on disk before it is charged, so that asking twice gives the same bytes twice.

The order is: stage, `Ledger.charge` with the digest, send. After a crash a round that is charged is answered with the
staged bytes, at no further cost; bytes that were staged and never charged were never sent and are replaced.

Under trust "central" the bytes hold no noise. They are of this node's own users, whose data lie beside them; they are
readable by its owner only, and those of a round go when a later round is staged: a coordinator has its charged model
on the disk before it asks for the next. Out of scope: what is in the bytes, and who is charged (`ledger`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.durable import durable_write, make_folder
from fedrec.privacy.private_files import make_private, remove_durably, remove_half_written

#: Rounds of one run that can be asked for again.
KEPT_ROUNDS = 1


class Outbox:
    """The staged bytes of one node: one file per run and round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stage(self, run: str, round_: int, payload: bytes) -> str:
        """Keep a payload, in the place of an uncharged one of the same round; its SHA-256 digest, in hex.

        Raises:
            PrivacyRefused: it could not be written; nothing may be charged or sent.
        """
        digest = hashlib.sha256(payload).hexdigest()
        kept = self._path(run, round_, digest)
        try:
            make_folder(self._folder)
            make_private(self._folder)
            remove_half_written(self._folder)
            durable_write(kept, payload)
            newest = max(number for number, _ in self._staged(run))
            remove_durably(
                path
                for number, path in list(self._staged(run))
                if path != kept and (number == round_ or number <= newest - KEPT_ROUNDS)
            )
        except OSError as error:
            raise PrivacyRefused(
                f"outbox {self._folder} cannot be written ({error.strerror}): nothing is sent; make room, start again"
            ) from error
        return digest

    def get(self, run: str, round_: int, digest: str) -> bytes | None:
        """The payload with this digest; None when it is not kept any more, or damaged."""
        try:
            payload = self._path(run, round_, digest).read_bytes()
        except OSError:
            return None
        return payload if hashlib.sha256(payload).hexdigest() == digest else None

    def discard(self, run: str) -> None:
        """Forget a run that is over."""
        remove_durably([path for _, path in self._staged(run)])

    def _staged(self, run: str) -> Iterator[tuple[int, Path]]:
        for path in self._folder.glob(f"{_label(run)}-*.bin"):
            yield int(path.name.split("-")[1]), path

    def _path(self, run: str, round_: int, digest: str) -> Path:
        return self._folder / f"{_label(run)}-{round_}-{digest}.bin"


def _label(run: str) -> str:
    """A run's name as part of a file name, whatever characters it has."""
    return hashlib.sha256(run.encode()).hexdigest()[:32]
