"""One-time tokens of the app's own login.

A token is made by the app's login server for a user who is signed in. Both share a key:

    TOKEN = NONCE "." EXPIRES "." HMAC-SHA256(key, "fedrec enrolment v1|" NONCE "|" EXPIRES) in hex
    NONCE = 32 hexadecimal digits; EXPIRES = seconds since 1970, at most a day ahead

and is good for one identity: its hash is in the database with the identity's before the device has a place, and no
other identity passes with it, at whichever front end. The service learns no account. A login server that derives the
nonce from account and day with a key of its own lets each account join once a day.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from pathlib import Path

from fedrec.core.errors import ServiceError
from fedrec_server.devices.admission.verifier import ADMISSIONS, AdmissionSettings
from fedrec_server.devices.state import admissions

KEY_BYTES = 32
MAX_TOKEN_SECONDS = 86_400
REFUSAL = "token: expected a new one of the app's login"
_TOKEN = re.compile(rb"([0-9a-f]{32})\.([0-9]{1,12})\.([0-9a-f]{64})")


def read_key(path: Path) -> bytes:
    """The key that service and login server share: 64 hexadecimal digits in a file for its owner only.

    Raises:
        ServiceError: it cannot be read, others may read it, or it is not a valid key.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ServiceError(f"{path} can be read by others than its owner: chmod 600 it")
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"{path} cannot be used ({error}): expected 64 hexadecimal digits, e.g. of `openssl rand -hex 32`"
        ) from error
    if len(key) != KEY_BYTES:
        raise ServiceError(f"{path} has a key of {len(key)} bytes: expected {KEY_BYTES}")
    return key


def issue(key: bytes, nonce: bytes, expires: int) -> str:
    """A token; for login servers in Python, and the reference for others.

    Args:
        key: [32] shared.
        nonce: [16] used once.
        expires: seconds since 1970.
    """
    return f"{nonce.hex()}.{expires}.{_code(key, nonce.hex(), str(expires))}"


def _code(key: bytes, nonce: str, expires: str) -> str:
    return hmac.new(key, f"fedrec enrolment v1|{nonce}|{expires}".encode(), hashlib.sha256).hexdigest()


@ADMISSIONS.register("token")
class TokenAdmission:
    """Lets in who shows a token that is genuine, in time, and not used by another identity.

    Raises:
        ServiceError: there is no key, or it cannot be read.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        if settings.key is None:
            raise ServiceError("admission by token without a key: give the file that the login server shares")
        self._key, self._state = read_key(settings.key), settings.state

    def verify(self, job: str, identity: bytes, evidence: bytes, address: str) -> str | None:
        """See `Admission`."""
        parts = _TOKEN.fullmatch(evidence)
        if parts is None:
            return REFUSAL
        nonce, expires, code = (part.decode() for part in parts.groups())
        in_time = 0 <= int(expires) - time.time() <= MAX_TOKEN_SECONDS
        genuine = hmac.compare_digest(code, _code(self._key, nonce, str(int(expires))))
        if not genuine or not in_time:
            return REFUSAL
        token, device = (hashlib.sha256(value).digest() for value in (nonce.encode(), identity))
        with self._state.write() as connection:
            fresh = admissions.use_token(connection, token, device, float(expires))
        return None if fresh else REFUSAL
