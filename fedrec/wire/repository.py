"""The signed metadata of one population, as its publisher keeps it: made, changed, renewed, its keys replaced.

    1.root.json 2.root.json ...      who may sign what; each signed by the keys of the one before and its own
    N.targets.json                   delegates models and tasks
    N.models.json N.tasks.json       targets with length and hash
    N.snapshot.json                  versions and hashes of the three above
    timestamp.json                   version and hash of the snapshot; short-lived

Format and rules are those of The Update Framework, specification 1.0 (https://theupdateframework.github.io); devices
verify them with its client. Files with a number are written first, and `timestamp.json` takes the place of the
earlier one last: whatever is killed before that leaves the old state, and the next change writes over what it left.
When keys are replaced, the root is last: until then everything is also signed by the keys before.
Out of scope: the files of models (`package`), who holds which key (`signing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fedrec.core.errors import RegistryError, RunError
from fedrec.core.files import PUBLIC, atomic_write
from fedrec.wire.layout import (
    DELEGATED,
    ONLINE,
    POPULATION,
    ROOT,
    SIGNED_AT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    delegated_paths,
)
from fedrec.wire.repository_state import State, read_state
from fedrec.wire.signing import OfflineKeys, OnlineKeys

DAY = 86_400


@dataclass(frozen=True)
class Lifetimes:
    """For how many days metadata holds after it was signed.

    Attributes:
        offline: root and targets: a ceremony is due before.
        models: what devices hold a model for current by; past it they go on serving and say that it has expired.
        tasks, snapshot: of these roles.
        timestamp: for so long can a service hide that there is something newer.
    """

    offline: float = 365.0
    models: float = 90.0
    tasks: float = 90.0
    snapshot: float = 30.0
    timestamp: float = 7.0

    def of(self, role: str) -> float:
        """Of a role, in days."""
        return float(getattr(self, "offline" if role in (ROOT, TARGETS) else role))


class Repository:
    """Metadata of a folder.

    Args:
        folder: for the metadata alone.
        population: whose.
        lifetimes: of what is signed.
    """

    def __init__(self, folder: Path, population: str, lifetimes: Lifetimes | None = None) -> None:
        self.folder, self.population = folder, population
        self.lifetimes = lifetimes or Lifetimes()

    def create(self, offline: OfflineKeys, online: OnlineKeys, now: float, threshold: int = 1) -> bytes:
        """Sign the first metadata; the root metadata that apps pin.

        Raises:
            RegistryError: there is a repository already, or it cannot be written.
            RunError: fewer root keys than the threshold.
        """
        if (self.folder / "1.root.json").exists():
            raise RegistryError(
                f"{self.folder} has a repository already: give another folder, or remove it if no app pins it"
            )
        root = self._root(1, offline, online, now, threshold)
        content = _signed(root, offline.root)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(
                f"{self.folder} cannot be made ({error.strerror}): give another folder"
            ) from error
        roles = {TARGETS: self._targets(1, online, now)}
        roles |= {role: Targets(1, expires=self._until(role, now), targets={}) for role in DELEGATED}
        # The root is last: without it there is no repository.
        self._commit(roles, {}, (0, 0), [offline], [online], now)
        self._write("1.root.json", content)
        return content

    def state(self, pinned: bytes) -> State:
        """What is in force, verified from pinned root metadata on.

        Raises:
            BadSignature: something in it is not signed as it must be, or not what it is said to be.
            RegistryError: a file is missing.
        """
        return read_state(self.folder, pinned)

    def change(self, pinned: bytes, online: OnlineKeys, now: float, **targets: Iterable[TargetFile]) -> State:
        """Sign new lists of targets: `models=` or `tasks=` or both; what is listed takes the place of what was.

        Raises:
            RunError: a key is not there.
            RegistryError, BadSignature: see `state`; nothing changed.
        """
        state = self.state(pinned)
        roles = {
            role: Targets(
                state.roles[role].version + 1,
                expires=self._until(role, now),
                targets={file.path: file for file in listed},
            )
            for role, listed in targets.items()
        }
        self._commit_after(state, roles, [], [online], now)
        return self.state(pinned)

    def renew(self, pinned: bytes, online: OnlineKeys, now: float) -> list[str]:
        """Sign anew, with a new expiry, what is past half of its life and has its key here; which roles.

        Raises:
            RegistryError, BadSignature: see `state`; nothing changed.
        """
        state = self.state(pinned)
        due = [role for role in DELEGATED if role in online.signers and self._is_due(state, role, now)]
        if due:
            roles = {role: state.roles[role] for role in due}
            for role, signed in roles.items():
                signed.version, signed.expires = signed.version + 1, self._until(role, now)
            self._commit_after(state, roles, [], [online], now)
        elif self._is_due(state, SNAPSHOT, now):
            self._commit_after(state, {}, [], [online], now)
            due = [SNAPSHOT]
        elif self._is_due(state, TIMESTAMP, now):
            _check_key(state, TIMESTAMP, [online])
            self._stamp(state.timestamp.version + 1, state.timestamp.snapshot_meta, [online], now)
            due = [TIMESTAMP]
        return due

    def replace_keys(
        self,
        pinned: bytes,
        before: tuple[OfflineKeys, OnlineKeys | None],
        after: tuple[OfflineKeys, OnlineKeys],
        now: float,
        threshold: int = 1,
    ) -> int:
        """A new root metadata for new keys; its version. Also renews it, when before and after are the same.

        Args:
            pinned: what apps pin; stays.
            before: keys in force; online None: they are lost, and between the new root and the new timestamp devices
                find nothing that they accept (a second attempt completes it).
            after: keys from now on.
            now: seconds since 1970.
            threshold: so many root keys must sign from now on; where the root keys stay, so does the threshold.

        Raises:
            RunError: a key is not there, or fewer root keys than the threshold.
            RegistryError, BadSignature: see `state`; or `before` are not the keys in force. Nothing changed.
        """
        state = self.state(pinned)
        version = state.root.version + 1
        in_force = state.root.roles[ROOT]
        stay = {signer.public_key.keyid for signer in after[0].root} <= set(in_force.keyids)
        root = self._root(version, after[0], after[1], now, 1 if stay else threshold)
        if stay:  # all root keys in force stay so, also those that are not at this ceremony
            root.roles[ROOT] = in_force
            root.keys |= {keyid: state.root.keys[keyid] for keyid in in_force.keyids}
        content = _signed(root, [*before[0].root, *after[0].root])
        try:
            state.root.verify_delegate(
                ROOT, Metadata(root).signed_bytes, Metadata.from_bytes(content).signatures
            )
        except RepositoryError as error:
            raise RegistryError(
                f"these are not the root keys in force ({error!s:.100}): give those of the last ceremony"
            ) from error
        roles = {TARGETS: self._targets(state.roles[TARGETS].version + 1, after[1], now)}
        for role in DELEGATED:
            roles[role] = state.roles[role]
            roles[role].version, roles[role].expires = roles[role].version + 1, self._until(role, now)
        if before[1] is None:
            self._write(f"{version}.root.json", content)
            self._commit_after(state, roles, [before[0], after[0]], [after[1]], now, checked=())
        else:
            both = [before[1], after[1]]
            self._commit_after(state, roles, [before[0], after[0]], both, now, checked=(SNAPSHOT, TIMESTAMP))
            self._write(f"{version}.root.json", content)
        return version

    def _root(
        self, version: int, offline: OfflineKeys, online: OnlineKeys, now: float, threshold: int
    ) -> Root:
        if not 1 <= threshold <= len(offline.root):
            raise RunError(
                f"threshold {threshold} with {len(offline.root)} root keys: expected 1 to {len(offline.root)}"
            )
        signers = {
            ROOT: offline.root,
            TARGETS: (offline.targets,),
            SNAPSHOT: (online.of(SNAPSHOT),),
            TIMESTAMP: (online.of(TIMESTAMP),),
        }
        keys = _public(signer for each in signers.values() for signer in each)
        roles = {
            role: Role([signer.public_key.keyid for signer in each], threshold if role == ROOT else 1)
            for role, each in signers.items()
        }
        return Root(version, expires=self._until(ROOT, now), keys=keys, roles=roles, consistent_snapshot=True)

    def _targets(self, version: int, online: OnlineKeys, now: float) -> Targets:
        """The top-level role: it lists no file and delegates everything."""
        delegated = {
            role: DelegatedRole(
                role,
                [online.of(role).public_key.keyid],
                1,
                terminating=True,
                paths=delegated_paths(self.population, role),
            )
            for role in DELEGATED
        }
        keys = _public(online.of(role) for role in DELEGATED)
        return Targets(
            version,
            expires=self._until(TARGETS, now),
            targets={},
            delegations=Delegations(keys, delegated),
            unrecognized_fields={POPULATION: self.population},
        )

    def _commit_after(
        self,
        state: State,
        roles: Mapping[str, Targets],
        offline: Sequence[OfflineKeys],
        online: Sequence[OnlineKeys],
        now: float,
        checked: Collection[str] = ONLINE,
    ) -> None:
        for role in (*roles, SNAPSHOT, TIMESTAMP):
            if role in checked:
                _check_key(state, role, online)
        versions = (state.snapshot.version, state.timestamp.version)
        self._commit(roles, state.snapshot.meta, versions, offline, online, now)

    def _commit(
        self,
        roles: Mapping[str, Targets],
        meta: Mapping[str, MetaFile],
        versions: tuple[int, int],
        offline: Sequence[OfflineKeys],
        online: Sequence[OnlineKeys],
        now: float,
    ) -> None:
        """Write changed roles, then a snapshot of all, then the timestamp that makes them count."""
        listed = dict(meta)
        contents: dict[str, bytes] = {}
        for role, signed in roles.items():
            signers = [keys.targets for keys in offline] if role == TARGETS else _all(online, role)
            content = _signed(signed, signers)
            contents[f"{signed.version}.{role}.json"] = content
            listed[f"{role}.json"] = _meta(signed.version, content)
        snapshot = Snapshot(versions[0] + 1, expires=self._until(SNAPSHOT, now), meta=listed)
        content = _signed(snapshot, _all(online, SNAPSHOT))
        contents[f"{snapshot.version}.snapshot.json"] = content
        _all(online, TIMESTAMP)  # a missing key must show before anything is written
        for name, data in contents.items():
            self._write(name, data)
        self._stamp(versions[1] + 1, _meta(snapshot.version, content), online, now)

    def _stamp(self, version: int, meta: MetaFile, online: Sequence[OnlineKeys], now: float) -> None:
        timestamp = Timestamp(
            version,
            expires=self._until(TIMESTAMP, now),
            snapshot_meta=meta,
            unrecognized_fields={SIGNED_AT: int(now)},
        )
        self._write("timestamp.json", _signed(timestamp, _all(online, TIMESTAMP)))

    def _until(self, role: str, now: float) -> datetime:
        return datetime.fromtimestamp(int(now + self.lifetimes.of(role) * DAY), UTC)

    def _is_due(self, state: State, role: str, now: float) -> bool:
        return state.expires(role) - now < self.lifetimes.of(role) * DAY / 2

    def _write(self, name: str, content: bytes) -> None:
        try:
            atomic_write(self.folder / name, content, PUBLIC)
        except OSError as error:
            raise RegistryError(
                f"{self.folder / name} cannot be written ({error.strerror}): nothing was changed"
            ) from error


def target_of(path: str, content: bytes, **custom: int | str) -> TargetFile:
    """A target with length and SHA-256."""
    fields = {"custom": custom} if custom else None
    return TargetFile(len(content), {"sha256": hashlib.sha256(content).hexdigest()}, path, fields)


def _check_key(state: State, role: str, online: Sequence[OnlineKeys]) -> None:
    """Whether devices would believe what these keys sign; nothing is written before that is sure.

    Raises:
        RegistryError: they would not.
    """
    delegations = state.roles[TARGETS].delegations
    delegated = delegations.roles if delegations is not None and delegations.roles is not None else {}
    allowed = delegated[role].keyids if role in DELEGATED else state.root.roles[role].keyids
    if not any(signer.public_key.keyid in allowed for signer in _all(online, role)):
        raise RegistryError(
            f"devices would refuse what this {role} key signs, so nothing was changed: "
            "give the online keys of the last ceremony, or complete one that was cut off"
        )


def _signed(signed: Any, signers: Iterable[CryptoSigner]) -> bytes:
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _all(online: Sequence[OnlineKeys], role: str) -> list[CryptoSigner]:
    return [keys.of(role) for keys in online]


def _public(signers: Iterable[CryptoSigner]) -> dict[str, Key]:
    return {signer.public_key.keyid: signer.public_key for signer in signers}


def _meta(version: int, content: bytes) -> MetaFile:
    return MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})
