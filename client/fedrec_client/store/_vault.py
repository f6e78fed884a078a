"""Where the data key of a store is kept, and the counter of its root; best first: OS keychain, passphrase, file.

`vault.json` beside the store says which. With a passphrase the key is wrapped under Argon2id (RFC 9106) and cannot be
unwrapped without it; changing the passphrase leaves the rows alone. The file is the last resort and says so in a
warning and in every status: a program that can read the account's files can read the events.

A deletion changes the key, which makes every copy of the file from before it unreadable, also those in backups,
unless the key was in them too. The counter tells an older copy of the database from the one that was left here. In
the keychain it lies outside the folder, so that an older copy of the whole folder is noticed; with a passphrase or a
file it lies inside, and a whole folder put back, key and all, is not.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import Any, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fedrec.core.errors import StoreError, StoreFull, StoreLocked
from fedrec.core.files import atomic_write, private_folder, read_private, refuse_link, sweep
from fedrec_client.store._database import NO_ROOM
from fedrec_client.store._held import Held
from fedrec_client.store._sealing import KEY_BYTES, NONCE_BYTES

log = logging.getLogger(__name__)

VAULT_FILE, KEY_FILE = "vault.json", "store.key"
#: RFC 9106, second recommended choice: for memory-constrained devices.
PASSES, MEMORY_KIB, LANES = 3, 64 * 1024, 4
_SERVICE = "fedrec"
_WRAPPED = b"fedrec wrapped data key v1"
#: OpenSSL shares its threads among all derivations of a process: several at once can wait for each other for good.
_STRETCHING = threading.Lock()


class Vault(Protocol):
    """Holds the key and the counter of one store.

    Attributes:
        notices: for status: which older copies of the store are noticed.
    """

    notices: str

    def read(self) -> Held:
        """What it holds.

        Raises:
            StoreLocked: it is missing, or the passphrase is wrong.
        """
        ...

    def write(self, held: Held) -> None:
        """Hold something else; on the disk, or with the keychain, when this returns.

        Raises:
            StoreError: that cannot be; it holds what it held.
        """
        ...

    def key(self) -> bytes:
        """[32] the data key as of now; each deletion changes it."""
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
        private_folder(folder)
        if os.path.lexists(folder / VAULT_FILE):
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
    """Key and counter lie in the operating system's keychain."""

    notices = "an older copy of a part or of the whole folder is noticed"

    def __init__(self, folder: Path, ring: Keychain, name: str) -> None:
        self._folder, self._ring, self._name = folder, ring, name

    @classmethod
    def create(cls, folder: Path, ring: Keychain) -> Self:
        """With a fresh key."""
        name = secrets.token_hex(16)
        ring.set_password(_SERVICE, name, Held.fresh().to_bytes().decode())
        _describe(folder, {"kind": "keychain", "name": name})
        return cls(folder, ring, name)

    def read(self) -> Held:
        """See `Vault`."""
        try:
            secret = self._ring.get_password(_SERVICE, self._name)
        except Exception as error:  # each keychain has errors of its own
            raise StoreLocked(f"the OS keychain cannot be read ({error!s:.80}): unlock it") from error
        if secret is None:
            raise StoreLocked(
                "the OS keychain has no key for this store: unlock it, or delete the store if it was removed"
            )
        return Held.parse(secret, "the OS keychain")

    def write(self, held: Held) -> None:
        """See `Vault`."""
        try:
            self._ring.set_password(_SERVICE, self._name, held.to_bytes().decode())
        except Exception as error:
            raise StoreLocked(
                f"the OS keychain cannot be written ({error!s:.80}): unlock it and try again"
            ) from error

    def key(self) -> bytes:
        """See `Vault`."""
        return self.read().keys[0]

    def describe(self) -> str:
        """See `Vault`."""
        return "keychain: the operating system guards the key"


class PassphraseVault:
    """Key and counter lie in `vault.json`, wrapped under a passphrase."""

    notices = "an older copy of the database is noticed, one of the whole folder is not"

    def __init__(self, folder: Path, passphrase: str) -> None:
        self._folder, self._passphrase = folder, passphrase
        #: Settings of Argon2id and what it made of the passphrase, so that a change of the counter costs nothing.
        self._stretched: tuple[dict[str, Any], bytes] | None = None
        self._known: Held | None = None

    @classmethod
    def create(cls, folder: Path, passphrase: str) -> Self:
        """With a fresh key."""
        _check_passphrase(passphrase)
        made = cls(folder, passphrase)
        made.write(Held.fresh())
        return made

    def read(self) -> Held:
        """See `Vault`."""
        plain = _read(self._folder)
        settings = {name: plain.get(name) for name in ("passes", "memory_kib", "lanes", "salt")}
        try:
            wrapped = bytes.fromhex(plain["wrapped"])
            if self._stretched is None or self._stretched[0] != settings:
                self._stretched = (settings, _stretch(settings, self._passphrase))
            text = AESGCM(self._stretched[1]).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _WRAPPED)
        except InvalidTag as error:
            self._stretched = None
            raise StoreLocked("the passphrase is wrong: nothing was touched; try again") from error
        except (KeyError, TypeError, ValueError) as error:
            raise StoreLocked(f"{VAULT_FILE} is broken ({error!s:.60}): restore it from a backup") from error
        self._known = Held.parse(text, VAULT_FILE)
        return self._known

    def write(self, held: Held) -> None:
        """See `Vault`."""
        if self._stretched is None:
            settings: dict[str, Any] = {"passes": PASSES, "memory_kib": MEMORY_KIB, "lanes": LANES}
            fresh = settings | {"salt": secrets.token_bytes(16).hex()}
            self._stretched = (fresh, _stretch(fresh, self._passphrase))
        settings, key = self._stretched
        nonce = secrets.token_bytes(NONCE_BYTES)
        wrapped = nonce + AESGCM(key).encrypt(nonce, held.to_bytes(), _WRAPPED)
        plain = {"kind": "passphrase", **settings, "wrapped": wrapped.hex()}
        _describe(self._folder, plain, shred=_lets_go(self._known, held))
        self._known = held

    def key(self) -> bytes:
        """See `Vault`."""
        return self.read().keys[0]

    def change(self, passphrase: str) -> None:
        """Wrap the same key under another passphrase; a crash leaves one of the two.

        Raises:
            StoreLocked: the passphrase of this vault is wrong.
        """
        _check_passphrase(passphrase)
        held = self.read()
        self._passphrase, self._stretched, self._known = passphrase, None, None
        self.write(held)

    def describe(self) -> str:
        """See `Vault`."""
        return "passphrase: the key is wrapped under Argon2id"


class FileVault:
    """Key and counter lie in a file that only its owner can read."""

    notices = "an older copy of the database is noticed, one of the whole folder is not"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: Held | None = None

    @classmethod
    def create(cls, folder: Path) -> Self:
        """With a fresh key."""
        if not os.path.lexists(folder / KEY_FILE):
            _replace(folder / KEY_FILE, Held.fresh().to_bytes(), shred=False)
        _describe(folder, {"kind": "file"})
        log.warning(
            "the key of store %s lies in a file beside it: whoever can read the files of this account can read the "
            "events; install the extra 'keychain' or give a passphrase",
            folder,
        )
        return cls(folder)

    def read(self) -> Held:
        """See `Vault`."""
        path = self._folder / KEY_FILE
        try:
            self._known = Held.parse(read_private(path), str(path))
        except OSError as error:
            raise StoreLocked(
                f"{path} cannot be read ({_why(error)}): without it the store is lost"
            ) from error
        return self._known

    def write(self, held: Held) -> None:
        """See `Vault`."""
        _replace(self._folder / KEY_FILE, held.to_bytes(), shred=_lets_go(self._known, held))
        self._known = held

    def key(self) -> bytes:
        """See `Vault`."""
        return self.read().keys[0]

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


def _stretch(settings: dict[str, Any], passphrase: str) -> bytes:
    if not (settings["passes"] <= 16 and settings["memory_kib"] <= 1 << 20 and settings["lanes"] <= 16):
        raise ValueError("Argon2id settings that cost too much")
    made = Argon2id(
        salt=bytes.fromhex(settings["salt"]),
        length=KEY_BYTES,
        iterations=settings["passes"],
        lanes=settings["lanes"],
        memory_cost=settings["memory_kib"],
    )
    with _STRETCHING:
        return made.derive(passphrase.encode())


def _check_passphrase(passphrase: str) -> None:
    if len(passphrase) < 8:
        raise StoreLocked("a passphrase of fewer than 8 characters: give a longer one")


def _lets_go(before: Held | None, after: Held) -> bool:
    """Whether a key is given up."""
    return before is None or not set(before.keys) <= set(after.keys)


def _describe(folder: Path, plain: dict[str, Any], *, shred: bool = False) -> None:
    content = (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()
    _replace(folder / VAULT_FILE, content, shred=shred)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / VAULT_FILE
    try:
        plain = json.loads(read_private(path))
    except (OSError, ValueError) as error:
        why = _why(error) if isinstance(error, OSError) else error
        raise StoreLocked(f"{path} cannot be read ({why}): restore it from a backup") from error
    if not isinstance(plain, dict):
        raise StoreLocked(f"{path} is broken: restore it from a backup")
    return plain


def _replace(path: Path, content: bytes, *, shred: bool) -> None:
    """Put a file in the place of an earlier one, whose bytes are written over where they hold what must go.

    On flash storage, and where the file system copies on write, the old bytes may live on until they are reused.
    """
    sweep(path)
    try:
        refuse_link(path)
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(path.open("r+b")) if shred and path.exists() else None
            atomic_write(path, content)
            if old is not None:
                old.write(secrets.token_bytes(os.fstat(old.fileno()).st_size))
                old.flush()
                os.fsync(old.fileno())
    except OSError as error:
        kind = StoreFull if error.errno in NO_ROOM else StoreError
        raise kind(
            f"{path} cannot be written ({_why(error)}): what was acknowledged is kept; make room there"
        ) from error


def _why(error: OSError) -> str:
    return (
        "it is a symbolic link, and none is followed" if error.errno == errno.ELOOP else str(error.strerror)
    )
