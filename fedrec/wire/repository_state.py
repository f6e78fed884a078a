"""What the signed metadata in a folder says, verified from pinned root metadata on; for its publisher.

Whether it has expired is for the caller. Out of scope: what devices do (`tuf.ngclient`), changing it (`repository`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from fedrec.core.errors import BadSignature, RegistryError
from fedrec.wire.layout import DELEGATED, MODELS, ROOT, SNAPSHOT, TARGETS, TASKS, TIMESTAMP

Kind = TypeVar("Kind", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class State:
    """What `timestamp.json` stands for, every signature and hash verified; whether it expired is for the caller."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    roles: Mapping[str, Targets] = field(repr=False)

    @property
    def models(self) -> Mapping[str, TargetFile]:
        """Targets of the role models, by path."""
        return self.roles[MODELS].targets

    @property
    def tasks(self) -> Mapping[str, TargetFile]:
        """Targets of the role tasks, by path."""
        return self.roles[TASKS].targets

    def expires(self, role: str) -> float:
        """Seconds since 1970."""
        signed: Signed = {ROOT: self.root, TIMESTAMP: self.timestamp, SNAPSHOT: self.snapshot}.get(
            role
        ) or self.roles[role]
        return signed.expires.timestamp()


def read_state(folder: Path, pinned: bytes) -> State:
    """What is in force in a folder.

    Raises:
        BadSignature: something in it is not signed as it must be, or not what it is said to be.
        RegistryError: a file is missing.
    """
    try:
        root = _newest_root(folder, pinned)
        timestamp = _verified(Timestamp, _read(folder, "timestamp.json"), root)
        meta = timestamp.snapshot_meta
        data = _read(folder, f"{meta.version}.snapshot.json")
        meta.verify_length_and_hashes(data)
        snapshot = _verified(Snapshot, data, root)
        roles: dict[str, Targets] = {}
        for role in (TARGETS, *DELEGATED):
            meta = snapshot.meta[f"{role}.json"]
            data = _read(folder, f"{meta.version}.{role}.json")
            meta.verify_length_and_hashes(data)
            roles[role] = _verified(Targets, data, roles.get(TARGETS, root), role)
    except (RepositoryError, KeyError, ValueError) as error:
        raise BadSignature(
            f"signed metadata in {folder} does not hold together ({error!s:.120}): restore it from a backup"
        ) from error
    return State(root, timestamp, snapshot, roles)


def _newest_root(folder: Path, pinned: bytes) -> Root:
    root = _verified(Root, pinned, None)
    while (path := folder / f"{root.version + 1}.root.json").exists():
        data = path.read_bytes()
        after = _verified(Root, data, root)
        _verified(Root, data, None)
        if after.version != root.version + 1:
            raise ValueError(f"{path.name} says it is version {after.version}")
        root = after
    return root


def _verified(kind: type[Kind], data: bytes, by: Root | Targets | None, role: str | None = None) -> Kind:
    """Metadata, once the delegating role's keys have signed it; without one, once its own have.

    Raises:
        RepositoryError, ValueError: they have not, or it is of another role.
    """
    metadata = Metadata[Kind].from_bytes(data)
    signed = metadata.signed
    if signed.type != kind.type:
        raise ValueError(f"expected {kind.type}, got {signed.type}")
    delegator = by if by is not None else signed
    assert isinstance(delegator, Root | Targets)
    delegator.verify_delegate(role or kind.type, metadata.signed_bytes, metadata.signatures)
    return signed


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise RegistryError(
            f"{folder / name} cannot be read ({error.strerror}): restore it from a backup"
        ) from error
