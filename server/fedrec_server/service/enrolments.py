"""Who may enrol in a training campaign: one user per device, few devices per address and day, and, where the operator
asks for it, none without a token of the app's own login.

A token is made by the app's login server for a user who is signed in. Both share a key:

    TOKEN = NONCE "." EXPIRES "." HMAC-SHA256(key, "fedrec enrolment v1|" NONCE "|" EXPIRES) in hex
    NONCE = 32 hexadecimal digits; EXPIRES = seconds since 1970, at most a day ahead

and is good for one device: its nonce is written down with the device's key before the device is on the roster, and
no other key passes with it. The service learns no account. A login server that derives the nonce from account and
campaign with a key of its own lets each account enrol once. Out of scope: the roster (`operations.campaigns`).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc

from fedrec.core.errors import RegistryError, ServiceError
from fedrec.core.files import sync_folder
from fedrec_server.network.refusals import Refused
from fedrec_server.service._campaigns import Campaigns
from fedrec_server.service._quotas import DailyQuota

KEY_BYTES = 32
MAX_TOKEN_SECONDS = 86_400
#: Nonces are remembered for so long beyond their end: a clock that is put back revives none.
REMEMBERED_SECONDS = 30 * 86_400
USED = "used-enrolment-tokens.jsonl"
_TOKEN = re.compile(r"([0-9a-f]{32})\.([0-9]{1,12})\.([0-9a-f]{64})")


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
    return f"{nonce.hex()}.{expires}.{_code(key, nonce.hex(), expires)}"


def _code(key: bytes, nonce: str, expires: int) -> str:
    return hmac.new(key, f"fedrec enrolment v1|{nonce}|{expires}".encode(), hashlib.sha256).hexdigest()


class EnrolmentTokens:
    """Checks tokens and remembers on disk which were used; safe for several threads and processes.

    Args:
        key: shared with the login server.
        folder: for the list of used nonces.
        clock: seconds since 1970.

    Raises:
        ServiceError: the list cannot be read or written.
    """

    def __init__(self, key: bytes, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._key, self._path, self._clock = key, folder / USED, clock
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone() as file:
                self._tidy(file)
        except OSError as error:
            raise ServiceError(f"{self._path} cannot be written ({error.strerror}): free it") from error

    def nonce(self, token: str) -> tuple[str, int] | None:
        """Nonce and end of a token that is genuine and in time; None: it is not."""
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            return None
        nonce, expires, code = parts[1], int(parts[2]), parts[3]
        in_time = 0 <= expires - self._clock() <= MAX_TOKEN_SECONDS
        genuine = hmac.compare_digest(code, _code(self._key, nonce, expires))
        return (nonce, expires) if genuine and in_time else None

    def use(self, nonce: str, expires: int, device: str) -> bool:
        """Bind a nonce to a device, on disk when this returns; False: another device has used it."""
        with self._alone() as file:
            used = _read(file)
            if nonce in used:
                return used[nonce][0] == device
            _append(file, nonce, device, expires)
            return True

    def _tidy(self, file: IO[bytes]) -> None:
        """Forget nonces that ended long ago."""
        oldest = self._clock() - REMEMBERED_SECONDS
        used = _read(file)
        kept = {nonce: each for nonce, each in used.items() if each[1] >= oldest}
        if len(kept) == len(used):
            return
        fresh = self._path.with_name(self._path.name + ".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as written:
            for nonce, (device, expires) in kept.items():
                written.write(_line(nonce, device, expires))
            written.flush()
            os.fsync(written.fileno())
        fresh.replace(self._path)

    @contextmanager
    def _alone(self) -> Iterator[IO[bytes]]:
        """The list, with one process at it; the lock is a file of its own, because the list is replaced."""
        lock = self._path.with_name(self._path.name + ".lock")
        with self._lock, os.fdopen(os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            made = not self._path.exists()
            with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                if made:
                    sync_folder(self._path.parent)
                yield file


def _read(file: IO[bytes]) -> dict[str, tuple[str, int]]:
    """Device and end by nonce; what a crash cut off was never acknowledged."""
    file.seek(0)
    entries = [json.loads(line) for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    return {entry["nonce"]: (entry["device"], entry["expires"]) for entry in entries}


def _append(file: IO[bytes], nonce: str, device: str, expires: int) -> None:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    file.write(_line(nonce, device, expires))
    file.flush()
    os.fsync(file.fileno())


def _line(nonce: str, device: str, expires: int) -> bytes:
    return (json.dumps({"nonce": nonce, "device": device, "expires": expires}) + "\n").encode()


class EnrolmentGate:
    """In front of the rosters of campaigns.

    Args:
        campaigns: where devices enrol.
        quota: by address.
        tokens: None: none are asked for.
    """

    def __init__(
        self, campaigns: Campaigns, quota: DailyQuota, tokens: EnrolmentTokens | None = None
    ) -> None:
        self._campaigns, self._quota, self._tokens = campaigns, quota, tokens

    def enrol(self, campaign: str, identity: bytes, node_key: str, token: str, address: str) -> None:
        """Put a device with one user on a roster; one that is on it already costs nothing.

        Raises:
            Refused: too many of this address or day, or no valid token.
            RegistryError: see `Campaigns`.
        """
        if not self._is_on(campaign, identity):
            device = hashlib.sha256(identity).hexdigest()
            known = self._tokens.nonce(token) if self._tokens else None
            if self._tokens and known is None:
                raise _no_token()
            if not self._quota.take(address):
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many enrolments", retry=True)
            if self._tokens and known and not self._tokens.use(*known, device):
                raise _no_token()
        self._campaigns.enrol(campaign, identity, node_key, 1)

    def _is_on(self, campaign: str, identity: bytes) -> bool:
        try:
            self._campaigns.task(campaign, identity)
        except RegistryError:
            return False
        return True


def _no_token() -> Refused:
    return Refused(grpc.StatusCode.PERMISSION_DENIED, "token: expected a new one of the app's login")
