"""Signed documents: what a device believes although it trusts neither the network nor the service.

Two levels of Ed25519 keys (RFC 8032). The *root* key stays offline; its public half is pinned in the app, and it
signs nothing but delegations: "this round key may sign these kinds of documents for this population from then to
then". A *round* key, online, signs the documents: manifests of models, tasks of training. A stolen round key is worth
what is left of its delegation; a later delegation with a higher serial makes devices refuse it at once.

Layout of a document (big endian): magic, length and bytes of the delegation, the root's signature, length and bytes
of the payload, the round key's signature. What is signed is the very bytes that travel; nothing is serialised again.
Out of scope: what a payload means (`manifest`).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedrec.errors import BadContent, BadSignature, Expired, Rollback, RunError, WrongPopulation
from fedrec.wire.files import write_secret

MANIFEST, TASK = "manifest", "task"
KINDS = (MANIFEST, TASK)
KEY_BYTES, SIGNATURE_BYTES = 32, 64
MAX_DOCUMENT_BYTES = 4 << 20
MAX_DEPTH = 12
#: A device's clock may be so much behind the signer's.
CLOCK_SKEW_SECONDS = 300.0
_MAGIC = b"fedrec document 1\n"
_FOR_DELEGATION = b"fedrec delegation v1\0"
_FOR_DOCUMENT = b"fedrec signed payload v1\0"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Delegation:
    """What the root allows a round key.

    Attributes:
        key: [32] public round key.
        population: whose documents it may sign.
        kinds: which documents.
        serial: higher ones replace lower ones.
        not_before, not_after: seconds since 1970.
    """

    key: bytes
    population: str
    kinds: tuple[str, ...]
    serial: int
    not_before: int
    not_after: int

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical(vars(self) | {"key": self.key.hex(), "kinds": list(self.kinds)})

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The delegation of `to_bytes`.

        Raises:
            BadContent: it is not one.
        """
        plain = parse_json(data)
        try:
            made = cls(
                bytes.fromhex(plain["key"]),
                plain["population"],
                tuple(plain["kinds"]),
                plain["serial"],
                plain["not_before"],
                plain["not_after"],
            )
            if made.to_bytes() != data or len(made.key) != KEY_BYTES or not _are_int(made):
                raise ValueError("fields")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadContent(
                f"no delegation ({error!r:.60}): the document is broken; fetch it again"
            ) from error
        return made


class RootKey:
    """The offline key; it signs delegations only."""

    def __init__(self, secret: Ed25519PrivateKey) -> None:
        self._secret = secret

    @classmethod
    def generate(cls) -> Self:
        """A fresh one."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> bytes:
        """[32] to pin in the app."""
        return self._secret.public_key().public_bytes_raw()

    def delegate(
        self,
        key: bytes,
        population: str,
        *,
        serial: int,
        not_before: float,
        not_after: float,
        kinds: Collection[str] = KINDS,
    ) -> bytes:
        """Allow a round key; the bytes of delegation and signature, which the key then carries.

        Raises:
            RunError: the time is empty or a kind is unknown.
        """
        if not_after <= not_before or set(kinds) - set(KINDS) or not kinds or len(key) != KEY_BYTES:
            raise RunError(
                f"delegation of {list(kinds)} from {not_before:.0f} to {not_after:.0f}: "
                f"expected a key of 32 bytes, kinds among {list(KINDS)} and a time that is not empty"
            )
        delegation = Delegation(
            key, population, tuple(sorted(kinds)), serial, int(not_before), int(not_after)
        ).to_bytes()
        return _framed(delegation) + self._secret.sign(_FOR_DELEGATION + delegation)

    def save(self, path: Path, passphrase: str) -> None:
        """Write the secret as PEM, encrypted, readable by its owner only; an existing file is never replaced."""
        _save(self._secret, path, passphrase)

    @classmethod
    def load(cls, path: Path, passphrase: str) -> Self:
        """The key of `save`.

        Raises:
            RunError: it cannot be read, or the passphrase is wrong.
        """
        return cls(_load(path, passphrase))


class RoundKey:
    """The online key with its delegation; it signs documents.

    Raises:
        BadContent: the delegation is not one, or is for another key.
    """

    def __init__(self, secret: Ed25519PrivateKey, delegated: bytes) -> None:
        self._secret, self.delegated = secret, delegated
        self.delegation = Delegation.parse(_unframed(delegated, 0)[0])
        if self.delegation.key != secret.public_key().public_bytes_raw():
            raise BadContent(
                "the delegation is for another round key: give the one that the root made for it"
            )

    @classmethod
    def generate(
        cls,
        root: RootKey,
        population: str,
        *,
        serial: int,
        not_before: float,
        not_after: float,
        kinds: Collection[str] = KINDS,
    ) -> Self:
        """A fresh one, allowed by a root that is at hand."""
        secret = Ed25519PrivateKey.generate()
        key = secret.public_key().public_bytes_raw()
        return cls(
            secret,
            root.delegate(
                key, population, serial=serial, not_before=not_before, not_after=not_after, kinds=kinds
            ),
        )

    def sign(self, kind: str, payload: Mapping[str, Any]) -> SignedDocument:
        """Sign a document of this key's population; `kind` and `population` are put into the payload.

        Raises:
            BadContent: the delegation does not allow the kind, or the payload is too large.
        """
        if kind not in self.delegation.kinds:
            raise BadContent(
                f"a {kind} to be signed by a key for {list(self.delegation.kinds)}: "
                "use a round key that was delegated for it"
            )
        data = canonical(dict(payload) | {"kind": kind, "population": self.delegation.population})
        signature = self._secret.sign(_signed(self.delegated, data))
        document = SignedDocument(self.delegated, data, signature)
        if len(document.to_bytes()) > MAX_DOCUMENT_BYTES:
            raise BadContent(
                f"{kind} of {len(data)} bytes: expected at most {MAX_DOCUMENT_BYTES}; say less in it"
            )
        return document

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Write the secret as PEM and the delegation beside it (`.delegation`); existing files are never replaced.

        Raises:
            RunError: one of them is there already, or cannot be written.
        """
        beside = path.with_suffix(".delegation")
        if beside == path or beside.exists():
            raise RunError(
                f"delegation {beside} is there already or has the key's own name: it is not replaced; "
                "give the key another name, e.g. round-2.pem"
            )
        _save(self._secret, path, passphrase)
        write_secret(beside, self.delegated)

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> Self:
        """The key of `save`.

        Raises:
            RunError: it cannot be read, or the passphrase is wrong.
        """
        try:
            delegated = path.with_suffix(".delegation").read_bytes()
        except OSError as error:
            raise RunError(
                f"delegation {path.with_suffix('.delegation')} cannot be read ({error.strerror}): "
                "it lies beside the round key; make both with `fedrec model delegate`"
            ) from error
        return cls(_load(path, passphrase), delegated)


@dataclass(frozen=True)
class SignedDocument:
    """A payload with the proof of who stands for it.

    Attributes:
        delegated: delegation and the root's signature, framed.
        payload: canonical JSON.
        signature: [64] of the round key.
    """

    delegated: bytes
    payload: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _MAGIC + self.delegated + _framed(self.payload) + self.signature

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Take the bytes apart; nothing is believed yet.

        Raises:
            BadContent: they are no document.
        """
        if len(data) > MAX_DOCUMENT_BYTES or not data.startswith(_MAGIC):
            raise BadContent(
                f"{len(data)} bytes are no signed document: fetch it again, or update the client"
            )
        delegation, after = _unframed(data, len(_MAGIC))
        end = after + SIGNATURE_BYTES
        payload, rest = _unframed(data, end)
        signature = data[rest:]
        if len(signature) != SIGNATURE_BYTES:
            raise BadContent(f"{len(data)} bytes are no signed document: its end is missing; fetch it again")
        return cls(_framed(delegation) + data[after:end], payload, signature)

    def verify(
        self, root: bytes, *, kind: str, population: str, now: float, min_serial: int = 0
    ) -> dict[str, Any]:
        """The payload, once every signature, time and purpose holds.

        Args:
            root: [32] the pinned public key.
            kind: which document this must be.
            population: for whom it must be.
            now: seconds since 1970.
            min_serial: of the delegation; the highest that this device has seen.

        Raises:
            BadSignature: not signed by a key that the root stands for, or not for this kind.
            WrongPopulation: for others.
            Expired: the delegation is out of its time.
            Rollback: the round key has been replaced by a later one.
            BadContent: signed, but no JSON.
        """
        framed, after = _unframed(self.delegated, 0)
        _check(root, self.delegated[after:], _FOR_DELEGATION + framed, "the pinned root key")
        delegation = Delegation.parse(framed)
        _check(delegation.key, self.signature, _signed(self.delegated, self.payload), "its round key")
        payload = parse_json(self.payload)
        if payload.get("kind") != kind or kind not in delegation.kinds:
            raise BadSignature(
                f"a signed {payload.get('kind')!r:.40} by a key for {list(delegation.kinds)!r:.80}: expected a {kind}"
            )
        if population not in (delegation.population,) or payload.get("population") != population:
            raise WrongPopulation(
                f"{kind} for population {payload.get('population')!r:.80}: this device is of {population!r}"
            )
        if delegation.serial < min_serial:
            raise Rollback(
                f"{kind} signed by a round key with serial {delegation.serial}: "
                f"this device knows {min_serial}; publish it anew with the key in use"
            )
        if not delegation.not_before - CLOCK_SKEW_SECONDS <= now <= delegation.not_after:
            raise Expired(
                f"{kind} signed by a round key for {delegation.not_before} to {delegation.not_after}, now {now:.0f}: "
                "check this device's clock; else a new key is due"
            )
        return payload

    @property
    def serial(self) -> int:
        """Of the delegation; for `min_serial` once verified."""
        return Delegation.parse(_unframed(self.delegated, 0)[0]).serial


def canonical(value: object) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only, finite numbers.

    Raises:
        BadContent: the value is no JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadContent(f"not JSON ({error}): give plain, finite values") from error


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no key twice, no NaN or Infinity, not deep.

    Raises:
        BadContent: it is not that.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite
        )
        _shallow(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise BadContent(f"no document ({error!s:.80}): it is broken; fetch it again") from error
    if not isinstance(value, dict):
        raise BadContent("no document (no JSON object): it is broken; fetch it again")
    return value


def read_public(path: Path) -> bytes:
    """A public key from a file of 64 hexadecimal digits.

    Raises:
        RunError: it cannot be read or is none.
    """
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise RunError(
            f"public key {path} cannot be read ({error}): expected 64 hexadecimal digits"
        ) from error
    if len(key) != KEY_BYTES:
        raise RunError(f"public key {path} has {len(key)} bytes: expected 64 hexadecimal digits")
    return key


def _signed(delegated: bytes, payload: bytes) -> bytes:
    """What the round key signs: the payload under this very delegation."""
    return _FOR_DOCUMENT + hashlib.sha256(delegated).digest() + payload


def _check(key: bytes, signature: bytes, message: bytes, whose: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"not signed by {whose}: it is refused; what was in use stays so") from error


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _unframed(data: bytes, start: int) -> tuple[bytes, int]:
    """The framed bytes at a place, and where they end."""
    body = start + _LENGTH.size
    end = body + (_LENGTH.unpack_from(data, start)[0] if len(data) >= body else MAX_DOCUMENT_BYTES)
    if end > len(data):
        raise BadContent(f"{len(data)} bytes are no signed document: it ends too early; fetch it again")
    return data[body:end], end


def _are_int(delegation: Delegation) -> bool:
    numbers = (delegation.serial, delegation.not_before, delegation.not_after)
    return (
        all(type(n) is int and n >= 0 for n in numbers)
        and isinstance(delegation.population, str)
        and all(isinstance(kind, str) for kind in delegation.kinds)
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _shallow(value: object, left: int) -> None:
    if left == 0:
        raise ValueError("nested too deep")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _shallow(child, left - 1)


def _save(secret: Ed25519PrivateKey, path: Path, passphrase: str | None) -> None:
    how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    write_secret(path, secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))


def _load(path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    except OSError as error:
        raise RunError(f"key {path} cannot be read ({error.strerror}): give the file that made it") from error
    except (ValueError, TypeError) as error:
        raise RunError(
            f"key {path} cannot be opened: the passphrase is missing or wrong, or it is no PEM"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RunError(
            f"key {path} is not Ed25519: make one with `fedrec model root` or `fedrec model delegate`"
        )
    return key
