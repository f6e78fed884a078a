"""Rows sealed under one data key: what a stolen file shows is how many rows there are and about how long.

AES-256-GCM (NIST SP 800-38D) with a random nonce per row, which bounds a key to 2^32 rows: a device that wrote one
every second would need 136 years. The row's place (table, format, row key) is authenticated with it, so rows cannot
be moved, swapped or passed off as another's. Names and ids stand in the file as keyed hashes only.
Out of scope: where the data key is kept (`vault`).
"""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrec.core.errors import StoreCorrupt

KEY_BYTES, NONCE_BYTES, TAG_BYTES, HASH_BYTES = 32, 12, 16, 16
#: Of the sealed text, not of the tables.
FORMAT = 1
_SMALL, _LARGE = 128, 2048


class Sealer:
    """Seals and opens rows.

    Args:
        key: [32] the data key.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(_derive(key, b"rows"))
        self._names, self._sums = _derive(key, b"names"), _derive(key, b"sums")

    def name(self, table: str, text: str) -> bytes:
        """[16] what stands in the file for a name: equal names of a table look equal, and nothing else is told."""
        return hmac.digest(self._names, f"{table}\0{text}".encode(), hashlib.sha256)[:HASH_BYTES]

    def seal(self, table: str, row: bytes, text: bytes) -> bytes:
        """Nonce and sealed text, padded to a length class."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, _padded(text), _place(table, row))

    def digest(self, table: str, number: int, row: bytes, sealed: bytes) -> int:
        """A row's part in the sum of its table (see `root`)."""
        place = f"{table}\0{number}\0".encode()
        return int.from_bytes(hmac.digest(self._sums, place + row + sealed, hashlib.sha256), "big")

    def open(self, table: str, row: bytes, sealed: bytes) -> bytes:
        """The text of `seal`.

        Raises:
            StoreCorrupt: it is not what was sealed for this place under this key.
        """
        try:
            padded = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _place(table, row))
        except (InvalidTag, ValueError) as error:
            raise StoreCorrupt(
                f"a row of {table} is not what was written: open the store with repair=True to keep what is sound"
            ) from error
        size = int.from_bytes(padded[:4], "big")
        return padded[4 : 4 + size]


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, None, b"fedrec device store v1 " + purpose).derive(key)


def _place(table: str, row: bytes) -> bytes:
    return f"{table}\0{FORMAT}\0".encode() + row


def _padded(text: bytes) -> bytes:
    """Length, text, zeros: up to a multiple of 128 bytes, of 2048 for long texts."""
    size = len(text) + 4
    step = _SMALL if size <= _LARGE else _LARGE
    return len(text).to_bytes(4, "big") + text + bytes(-size % step)
