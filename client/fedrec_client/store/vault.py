"""Where the data key of a store is kept, best first: the OS keychain, a passphrase, a file.

`vault.json` beside the store says which. With a passphrase the key is wrapped under Argon2id (RFC 9106) and can be
unwrapped by nobody without it; changing the passphrase leaves the rows alone. The file is the last resort and says
so in a warning and in every status: whoever can read the account's files can read the events.
Destroying the key makes every copy of the store unreadable, also those in backups, unless the key was in them too.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fedrec.errors import StoreError, StoreLocked
from fedrec.wire.files import atomic_write, write_secret
from fedrec_client.store.sealing import KEY_BYTES, NONCE_BYTES

log = logging.getLogger(__name__)

VAULT_FILE, KEY_FILE = "vault.json", "store.key"
#: RFC 9106, second recommended choice: for memory-constrained devices.
PASSES, MEMORY_KIB, LANES = 3, 64 * 1024, 4
_SERVICE = "fedrec"
_WRAPPED = b"fedrec wrapped data key v1"


class Vault(Protocol):
    """Holds the data key of one store."""

    def key(self) -> bytes:
        """[32] the data key.

        Raises:
            StoreLocked: it is missing, or the passphrase is wrong.
        """
        ...

    def destroy(self) -> None:
        """Make the key unrecoverable; harmless when it is gone already."""
        ...

    def describe(self) -> str:
        """For status: how the key is kept."""
        ...


class Keychain(Protocol):
    """What is needed of the `keyring` package."""

    def get_password(self, service: str, name: str) -> str | None:
        """The secret of a name."""
        ...

    def set_password(self, service: str, name: str, secret: str) -> None:
        """Keep a secret."""
        ...

    def delete_password(self, service: str, name: str) -> None:
        """Forget a secret."""
        ...


def open_vault(folder: Path, passphrase: str | None = None, keychain: Keychain | None = None) -> Vault:
    """The vault of a store's folder; a new one is made as good as this device allows.

    Args:
        folder: of the store; made when it is missing, for its owner only.
        passphrase: wraps the key; needed again at every opening.
        keychain: in the place of the OS's own, for tests.

    Raises:
        StoreLocked: the passphrase is missing or wrong, or the keychain has no key.
        StoreError: the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (folder / VAULT_FILE).exists():
            return _existing(folder, passphrase, keychain)
        if passphrase is not None:
            return PassphraseVault.create(folder, passphrase)
        ring = keychain or system_keychain()
        return KeychainVault.create(folder, ring) if ring is not None else FileVault.create(folder)
    except OSError as error:
        raise StoreError(
            f"store folder {folder} cannot be used ({error.strerror}): give a writable one"
        ) from error


class KeychainVault:
    """The key lies in the operating system's keychain."""

    def __init__(self, folder: Path, ring: Keychain, name: str) -> None:
        self._folder, self._ring, self._name = folder, ring, name

    @classmethod
    def create(cls, folder: Path, ring: Keychain) -> Self:
        """With a fresh key."""
        name = secrets.token_hex(16)
        ring.set_password(_SERVICE, name, secrets.token_hex(KEY_BYTES))
        _describe(folder, {"kind": "keychain", "name": name})
        return cls(folder, ring, name)

    def key(self) -> bytes:
        """See `Vault`."""
        secret = self._ring.get_password(_SERVICE, self._name)
        if secret is None:
            raise StoreLocked(
                "the OS keychain has no key for this store: unlock it, or delete the store if it was removed"
            )
        return bytes.fromhex(secret)

    def destroy(self) -> None:
        """See `Vault`."""
        if self._ring.get_password(_SERVICE, self._name) is not None:
            self._ring.delete_password(_SERVICE, self._name)
        (self._folder / VAULT_FILE).unlink(missing_ok=True)

    def describe(self) -> str:
        """See `Vault`."""
        return "keychain: the operating system guards the key"


class PassphraseVault:
    """The key lies in `vault.json`, wrapped under a passphrase."""

    def __init__(self, folder: Path, passphrase: str) -> None:
        self._folder, self._passphrase = folder, passphrase

    @classmethod
    def create(cls, folder: Path, passphrase: str) -> Self:
        """With a fresh key."""
        _check_passphrase(passphrase)
        _describe(folder, _wrap(secrets.token_bytes(KEY_BYTES), passphrase))
        return cls(folder, passphrase)

    def key(self) -> bytes:
        """See `Vault`."""
        return _unwrap(_read(self._folder), self._passphrase)

    def change(self, passphrase: str) -> None:
        """Wrap the same key under another passphrase; a crash leaves one of the two.

        Raises:
            StoreLocked: the passphrase of this vault is wrong.
        """
        _check_passphrase(passphrase)
        _describe(self._folder, _wrap(self.key(), passphrase))
        self._passphrase = passphrase

    def destroy(self) -> None:
        """See `Vault`."""
        _shred(self._folder / VAULT_FILE)

    def describe(self) -> str:
        """See `Vault`."""
        return "passphrase: the key is wrapped under Argon2id"


class FileVault:
    """The key lies in a file that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def create(cls, folder: Path) -> Self:
        """With a fresh key."""
        if not (folder / KEY_FILE).exists():
            write_secret(folder / KEY_FILE, secrets.token_bytes(KEY_BYTES))
        _describe(folder, {"kind": "file"})
        log.warning(
            "the key of store %s lies in a file beside it: whoever can read the files of this account can read the "
            "events; install the extra 'keychain' or give a passphrase",
            folder,
        )
        return cls(folder)

    def key(self) -> bytes:
        """See `Vault`."""
        path = self._folder / KEY_FILE
        try:
            if path.stat().st_mode & 0o077 and os.name == "posix":
                raise StoreLocked(f"{path} can be read by others: chmod 600 it, and ask who has read it")
            key = path.read_bytes()
        except OSError as error:
            raise StoreLocked(
                f"{path} cannot be read ({error.strerror}): without it the store is lost"
            ) from error
        if len(key) != KEY_BYTES:
            raise StoreLocked(f"{path} has {len(key)} bytes: expected {KEY_BYTES}; restore it from a backup")
        return key

    def destroy(self) -> None:
        """See `Vault`."""
        _shred(self._folder / KEY_FILE)
        (self._folder / VAULT_FILE).unlink(missing_ok=True)

    def describe(self) -> str:
        """See `Vault`."""
        return "file: whoever can read this account's files can read the events"


def system_keychain() -> Keychain | None:
    """The OS's keychain through the `keyring` package (extra `keychain`); None where there is none to trust."""
    try:
        keyring = importlib.import_module("keyring")
        backend = keyring.get_keyring()
    except Exception:
        return None
    kinds = [type(each).__module__ for each in getattr(backend, "backends", [backend])]
    safe = (
        "keyring.backends.SecretService",
        "keyring.backends.macOS",
        "keyring.backends.Windows",
        "keyring.backends.kwallet",
    )
    return keyring if kinds and all(kind.startswith(safe) for kind in kinds) else None


def _existing(folder: Path, passphrase: str | None, keychain: Keychain | None) -> Vault:
    plain = _read(folder)
    kind = plain.get("kind")
    if kind == "file":
        return FileVault(folder)
    if kind == "passphrase":
        if passphrase is None:
            raise StoreLocked(f"store {folder} is locked by a passphrase: give passphrase=")
        return PassphraseVault(folder, passphrase)
    ring = keychain or system_keychain()
    if kind == "keychain" and ring is not None:
        return KeychainVault(folder, ring, str(plain.get("name")))
    raise StoreLocked(
        f"the key of store {folder} is kept by {kind!r:.40}, which is not here: install extra 'keychain', or log in"
    )


def _wrap(key: bytes, passphrase: str) -> dict[str, Any]:
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(NONCE_BYTES)
    settings = {"passes": PASSES, "memory_kib": MEMORY_KIB, "lanes": LANES, "salt": salt.hex()}
    wrapped = nonce + AESGCM(_stretch(settings, passphrase)).encrypt(nonce, key, _WRAPPED)
    return {"kind": "passphrase", **settings, "wrapped": wrapped.hex()}


def _unwrap(plain: dict[str, Any], passphrase: str) -> bytes:
    try:
        wrapped = bytes.fromhex(plain["wrapped"])
        key = _stretch(plain, passphrase)
        return AESGCM(key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _WRAPPED)
    except InvalidTag as error:
        raise StoreLocked("the passphrase is wrong: nothing was touched; try again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreLocked(f"{VAULT_FILE} is broken ({error!s:.60}): restore it from a backup") from error


def _stretch(settings: dict[str, Any], passphrase: str) -> bytes:
    if not (settings["passes"] <= 16 and settings["memory_kib"] <= 1 << 20 and settings["lanes"] <= 16):
        raise ValueError("Argon2id settings that cost too much")
    return Argon2id(
        salt=bytes.fromhex(settings["salt"]),
        length=KEY_BYTES,
        iterations=settings["passes"],
        lanes=settings["lanes"],
        memory_cost=settings["memory_kib"],
    ).derive(passphrase.encode())


def _check_passphrase(passphrase: str) -> None:
    if len(passphrase) < 8:
        raise StoreLocked("a passphrase of fewer than 8 characters: give a longer one")


def _describe(folder: Path, plain: dict[str, Any]) -> None:
    atomic_write(folder / VAULT_FILE, (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode())


def _read(folder: Path) -> dict[str, Any]:
    try:
        plain = json.loads((folder / VAULT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise StoreLocked(
            f"{folder / VAULT_FILE} cannot be read ({error}): restore it from a backup"
        ) from error
    if not isinstance(plain, dict):
        raise StoreLocked(f"{folder / VAULT_FILE} is broken: restore it from a backup")
    return plain


def _shred(path: Path) -> None:
    """Write over a file before its name goes; on flash storage the old bytes may live on until they are reused."""
    with contextlib.suppress(FileNotFoundError):
        with path.open("r+b") as file:
            file.write(secrets.token_bytes(max(path.stat().st_size, 1)))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()


def check_value(key: bytes) -> bytes:
    """[16] by which a store knows its key without telling it."""
    return hmac.digest(key, b"fedrec device store check", hashlib.sha256)[:16]
