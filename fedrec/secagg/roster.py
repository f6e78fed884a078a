"""Identities: who may take part, pinned on every device before the first round, apart from the server.

A roster lists the Ed25519 public key (RFC 8032) of every device. Whoever writes the rosters decides who a device
will mask against: where that is the server itself, the protocol holds against a server that is curious and follows
the protocol, and not against one that cheats. Out of scope: how a roster is handed out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.core.errors import AggregationRefused, RunError
from fedrec.core.refusal_reasons import Reason

SIGNATURE_BYTES = 64
_KEY = r"[0-9a-f]{64}"


class Member(BaseModel):
    """One device.

    Attributes:
        name: by which its operator knows it.
        key: Ed25519 public key, 32 bytes in hex.
        users: how many users it hosts; one, unless the operator vouches for more.
        vouched: the operator knows the member to be a site with so many users; a member's own word is not enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    key: str = Field(pattern=_KEY)
    users: int = Field(default=1, ge=0)
    vouched: bool = False

    @model_validator(mode="after")
    def _one_device_is_one_user(self) -> Member:
        if self.users > 1 and not self.vouched:
            raise ValueError(
                f"member {self.name!r} has {self.users} users and vouched is false: one device counts as one user "
                "unless the operator vouches for it in the roster"
            )
        return self


class Roster(BaseModel):
    """Everyone who may take part; a device is known by its place in the list."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _no_one_twice(self) -> Roster:
        for what in ("name", "key"):
            values = [getattr(member, what) for member in self.members]
            if len(set(values)) != len(values):
                raise ValueError(f"a roster has one {what} twice: every device needs its own")
        return self

    def __len__(self) -> int:
        return len(self.members)

    @property
    def users(self) -> int:
        """How many users all members host together."""
        return sum(member.users for member in self.members)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the whole roster."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    def index(self, public: bytes) -> int:
        """Place of the owner of a public key.

        Raises:
            AggregationRefused: no one here has it.
        """
        places = [place for place, member in enumerate(self.members) if member.key == public.hex()]
        if not places:
            raise AggregationRefused(
                f"key {public.hex()[:16]} is not in the roster of {len(self)} devices: enrol this device first",
                Reason.IDENTITY,
            )
        return places[0]

    def verify(self, index: int, signature: bytes, message: bytes) -> None:
        """Check who signed.

        Raises:
            AggregationRefused: the index is not in the roster, or the signature is not of its owner.
        """
        if not 0 <= index < len(self):
            raise AggregationRefused(
                f"device {index} is not in the roster: expected one of {len(self)}", Reason.IDENTITY
            )
        try:
            self._keys(index).verify(signature, message)
        except InvalidSignature:
            raise AggregationRefused(
                f"a signature does not fit device {index} ({self.members[index].name}) and this attempt: "
                "someone changed it, or it is of another time",
                Reason.SIGNATURE,
            ) from None

    def _keys(self, index: int) -> Ed25519PublicKey:
        if index not in self._parsed:
            self._parsed[index] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.members[index].key))
        return self._parsed[index]

    @cached_property
    def _parsed(self) -> dict[int, Ed25519PublicKey]:
        return {}


@dataclass(frozen=True)
class Identity:
    """A device's own long-lived signing key; it signs adverts and survivor lists and never leaves the device."""

    private: Ed25519PrivateKey

    @classmethod
    def create(cls) -> Identity:
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> Identity:
        """The key of a file that holds `secret`.

        Raises:
            RunError: it is missing or no key.
        """
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise RunError(f"identity {path} cannot be read ({error}): enrol this device again") from error

    @property
    def secret(self) -> bytes:
        """[32] the private key, as `read` takes it."""
        return self.private.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """[32] the public key, for the roster."""
        return self.private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """[64] Ed25519 signature."""
        return self.private.sign(message)
