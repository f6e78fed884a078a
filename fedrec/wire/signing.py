"""Keys of a signed repository: who may sign which role of The Update Framework.

*Offline* keys (root, targets) are needed at ceremonies only: to make a repository, to replace keys, once a year to
renew. They are written encrypted. *Online* keys (models, tasks, snapshot, timestamp) lie where models are published
and served; a stolen one is replaced by the root, and devices then take the owner's next metadata whatever a thief
has signed. All are Ed25519 (RFC 8032). What apps pin is the repository's first root metadata, not a single key.
Out of scope: what is signed (`repository`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from fedrec.core.errors import RunError
from fedrec.core.files import write_secret
from fedrec.wire.layout import ONLINE, ROOT, TARGETS

MAX_ROOT_KEYS = 9


@dataclass(frozen=True)
class OfflineKeys:
    """Keys that are needed at ceremonies only.

    Attributes:
        root: each of them; how many must sign is written in the root metadata.
        targets: signs the delegations.
    """

    root: tuple[CryptoSigner, ...]
    targets: CryptoSigner

    @classmethod
    def generate(cls, root_keys: int = 1) -> Self:
        """Fresh ones.

        Raises:
            RunError: the number of root keys is not 1 to `MAX_ROOT_KEYS`.
        """
        if not 1 <= root_keys <= MAX_ROOT_KEYS:
            raise RunError(f"{root_keys} root keys: expected 1 to {MAX_ROOT_KEYS}")
        return cls(
            tuple(CryptoSigner.generate_ed25519() for _ in range(root_keys)), CryptoSigner.generate_ed25519()
        )

    def save(self, folder: Path, passphrase: str) -> None:
        """Write each key as PEM, encrypted, readable by its owner only; an existing file is never replaced.

        Raises:
            RunError: one of them is there already, or cannot be written.
        """
        _make(folder)
        for number, signer in enumerate(self.root, start=1):
            _save(signer, folder / _root_file(number), passphrase)
        _save(self.targets, folder / f"{TARGETS}.pem", passphrase)

    @classmethod
    def load(cls, folder: Path, passphrase: str) -> Self:
        """The keys of `save`; of several root keys those that lie there.

        Raises:
            RunError: there is none, one cannot be read, or the passphrase is wrong.
        """
        paths = [path for n in range(1, MAX_ROOT_KEYS + 1) if (path := folder / _root_file(n)).exists()] or [
            folder / _root_file(1)
        ]
        return cls(
            tuple(_load(path, passphrase) for path in paths), _load(folder / f"{TARGETS}.pem", passphrase)
        )


@dataclass(frozen=True)
class OnlineKeys:
    """Keys that lie where models are published and served; a machine may have some of them only.

    Attributes:
        signers: by role.
    """

    signers: Mapping[str, CryptoSigner]

    @classmethod
    def generate(cls) -> Self:
        """Fresh ones for every online role."""
        return cls({role: CryptoSigner.generate_ed25519() for role in ONLINE})

    def of(self, role: str) -> CryptoSigner:
        """The key of a role.

        Raises:
            RunError: it is not here.
        """
        if role not in self.signers:
            raise RunError(
                f"no key of role {role!r} here (there are {', '.join(self.signers) or 'none'}): "
                f"add {role}.pem to the folder of online keys"
            )
        return self.signers[role]

    def save(self, folder: Path, passphrase: str | None = None) -> None:
        """Write each key as PEM, readable by its owner only; an existing file is never replaced.

        Raises:
            RunError: one of them is there already, or cannot be written.
        """
        _make(folder)
        for role, signer in self.signers.items():
            _save(signer, folder / f"{role}.pem", passphrase)

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> Self:
        """The keys that lie in a folder.

        Raises:
            RunError: there is none, or one cannot be read.
        """
        found = {role: path for role in ONLINE if (path := folder / f"{role}.pem").exists()}
        if not found:
            raise RunError(f"no online key in {folder}: make them with `fedrec-server keys init`")
        return cls({role: _load(path, passphrase) for role, path in found.items()})


def _root_file(number: int) -> str:
    return f"{ROOT}.pem" if number == 1 else f"{ROOT}-{number}.pem"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error.strerror}): give another folder") from error


def _save(signer: CryptoSigner, path: Path, passphrase: str | None) -> None:
    how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    secret = load_pem_private_key(signer.private_bytes, None)
    write_secret(path, secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))


def _load(path: Path, passphrase: str | None) -> CryptoSigner:
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    except OSError as error:
        raise RunError(
            f"key {path} cannot be read ({error.strerror}): make it with `fedrec-server keys init`"
        ) from error
    except (ValueError, TypeError) as error:
        raise RunError(
            f"key {path} cannot be opened: the passphrase is missing or wrong, or it is not a valid PEM file"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RunError(f"key {path} is not Ed25519: make one with `fedrec-server keys init`")
    return CryptoSigner(key)
