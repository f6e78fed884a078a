"""The registry: every published model of a population, and which of them devices are to use.

    ROOT/<population>/root.json                                root metadata that apps pin
    ROOT/<population>/public/metadata/                         signed metadata (`fedrec.wire.repository`)
    ROOT/<population>/public/targets/<population>/models/<n>/  a model package (`fedrec.wire.package`)
    ROOT/<population>/history.jsonl                            who did what, when

`public/` is what devices fetch, through the model service or from any web server that hands out the folder. What is
in use is what the signed metadata says: a change counts once its `timestamp.json` is in place, and not before. One
writer at a time. Out of scope: handing models out (`service`), which files may be handed out (`public_files`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from fedrec.core.errors import BadContent, RegistryError, UpdateRejected
from fedrec.core.files import PUBLIC as READABLE
from fedrec.core.files import atomic_write
from fedrec.wire.layout import (
    ALL_TRAFFIC,
    CANARY,
    CHAMPION,
    METADATA_FOLDER,
    MODELS,
    TARGETS_FOLDER,
    hashed_name,
    model_target,
    task_target,
)
from fedrec.wire.manifest import MANIFEST_FILE, FileEntry, Manifest, check_population
from fedrec.wire.package import Package, Terms, delta_name, open_package, read_manifest, write_package
from fedrec.wire.pinned_root import read_root
from fedrec.wire.repository import Lifetimes, Repository, target_of
from fedrec.wire.repository_state import State
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec.wire.strict_json import canonical
from fedrec_server.registry._aliases import Aliases
from fedrec_server.registry._checks import UNSIGNED, state_of
from fedrec_server.registry._history import append_history, read_history

#: How long another writer is waited for.
WAIT_SECONDS = 10.0
HISTORY, PINNED, PUBLIC, LOCK = "history.jsonl", "root.json", "public", ".lock"
#: A package that is being written (`place_folder`).
_ASIDE = re.compile(r"\.\d+\.[0-9a-f]+\.tmp")


class Registry:
    """The models of one population.

    Args:
        root: folder of all populations.
        population: whose.
        lifetimes: of what is signed from now on.

    Raises:
        RegistryError: there is none.
    """

    def __init__(self, root: Path, population: str, lifetimes: Lifetimes | None = None) -> None:
        try:
            check_population(population)
        except BadContent as error:
            raise RegistryError(str(error)) from error
        self.folder, self.population = root / population, population
        self.public = self.folder / PUBLIC
        self.repository = Repository(self.public / METADATA_FOLDER, population, lifetimes)
        if not (self.folder / PINNED).exists():
            raise RegistryError(
                f"no registry of population {population!r} in {root}: make it with `fedrec-server keys init`"
            )

    @classmethod
    def create(
        cls,
        root: Path,
        population: str,
        offline: OfflineKeys,
        online: OnlineKeys,
        *,
        now: float | None = None,
        threshold: int = 1,
        lifetimes: Lifetimes | None = None,
    ) -> Registry:
        """A new one, signed for the first time.

        Raises:
            RegistryError: there is one already, or it cannot be written.
            RunError: fewer root keys than the threshold.
        """
        try:
            folder = root / check_population(population)
        except BadContent as error:
            raise RegistryError(str(error)) from error
        if (folder / PINNED).exists():
            raise RegistryError(
                f"{folder} is a registry already: devices pin its root; make another population"
            )
        fresh = not folder.exists()
        repository = Repository(folder / PUBLIC / METADATA_FOLDER, population, lifetimes)
        try:
            pinned = repository.create(offline, online, _time(now), threshold)
            (folder / PUBLIC / TARGETS_FOLDER / population / MODELS).mkdir(parents=True, exist_ok=True)
            atomic_write(folder / PINNED, pinned, READABLE)
        except OSError as error:
            if fresh:  # nothing pins it yet
                shutil.rmtree(folder, ignore_errors=True)
            raise RegistryError(
                f"{folder} cannot be written ({error.strerror}): give another folder"
            ) from error
        return cls(root, population, lifetimes)

    @property
    def pinned(self) -> bytes:
        """Root metadata that apps pin."""
        return read_root(self.folder / PINNED)

    def state(self) -> State:
        """The signed metadata in force.

        Raises:
            BadSignature: it does not hold together.
            RegistryError: a file is missing.
        """
        return self.repository.state(self.pinned)

    @property
    def aliases(self) -> Aliases:
        """As they are signed.

        Raises:
            BadSignature, RegistryError: see `state`.
        """
        return Aliases.of(self.population, self.state().models)

    def versions(self) -> list[int]:
        """All that are signed, rising."""
        return sorted(self._manifests(self.state()))

    def path(self, version: int) -> Path:
        """Folder of a version.

        Raises:
            RegistryError: there is none.
        """
        folder = self.packages / str(version)
        if not (folder / MANIFEST_FILE).exists():
            known = ", ".join(map(str, self.versions()[-5:])) or "none"
            raise RegistryError(f"{self.population} has no model version {version}: there are {known}")
        return folder

    @property
    def packages(self) -> Path:
        """Folder of all versions."""
        return self.public / TARGETS_FOLDER / self.population / MODELS

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version, its hash held against the signed one.

        Raises:
            RegistryError: there is none.
            UpdateRejected: it is not genuine.
        """
        return read_manifest(self.path(version), self._sha256(version))

    def open(self, version: int) -> Package:
        """A version, everything verified.

        Raises:
            RegistryError: there is none.
            UpdateRejected: it is damaged or not genuine.
        """
        return open_package(self.path(version), self._sha256(version))

    def verify(self) -> dict[int, str]:
        """Every version that is there or in use: "good", or what is wrong with it.

        Raises:
            BadSignature, RegistryError: see `state`.
        """
        found = {version: state_of(self, version) for version in self.versions()}
        for version in self._folders():
            found.setdefault(version, UNSIGNED)
        return dict(sorted(found.items()))

    def publish(
        self, files: Mapping[str, bytes], terms: Terms, keys: OnlineKeys, now: float | None = None
    ) -> Manifest:
        """Sign files under the next version; the version in `terms` is replaced, no alias moves.

        Raises:
            RegistryError: it cannot be written, or the keys are not those that devices believe.
        """
        with self._writing():
            state = self.state()
            manifests, aliases = self._manifests(state), Aliases.of(self.population, state.models)
            version = 1 + max([*manifests, *self._folders(), *self._ever_published()], default=0)
            bases = {v: self.path(v) for v in aliases.named.values() if self._can_be_opened(v)}
            made = write_package(
                self.packages / str(version), files, self.population, replace(terms, version=version), bases
            )
            manifests[version] = target_of(
                model_target(self.population, version, MANIFEST_FILE), made.to_bytes(), version=version
            )
            self._sign(manifests, aliases, keys, now, "publish", version=version)
            return made

    def promote(
        self,
        version: int,
        keys: OnlineKeys,
        alias: str = CHAMPION,
        traffic: int = ALL_TRAFFIC,
        now: float | None = None,
    ) -> Aliases:
        """Let devices use a version, all of them or a share; becoming champion ends a canary.

        Raises:
            RegistryError: it is unknown, or the keys are not those that devices believe.
            UpdateRejected: it is damaged.
        """
        if alias not in (CHAMPION, CANARY) or not 0 <= traffic <= ALL_TRAFFIC:
            raise RegistryError(
                f"promote to {alias!r:.20} with traffic {traffic}: expected champion or canary, 0 to {ALL_TRAFFIC}"
            )
        return self._promote(version, keys, alias, traffic, now, "promote")

    def rollback(self, to: int, keys: OnlineKeys, now: float | None = None) -> Aliases:
        """Make an earlier version champion again; devices take it because newer metadata says so.

        Raises:
            RegistryError, UpdateRejected: see `promote`.
        """
        return self._promote(to, keys, CHAMPION, ALL_TRAFFIC, now, "rollback")

    def renew(self, keys: OnlineKeys, now: float | None = None) -> list[str]:
        """Sign anew what is past half of its life and has its key here; which roles.

        Raises:
            RegistryError, BadSignature: see `state`; or another process is writing.
        """
        with self._writing():
            return self.repository.renew(self.pinned, keys, _time(now))

    def replace_keys(
        self,
        before: tuple[OfflineKeys, OnlineKeys | None],
        after: tuple[OfflineKeys, OnlineKeys],
        *,
        threshold: int = 1,
        now: float | None = None,
    ) -> int:
        """See `Repository.replace_keys`."""
        with self._writing():
            version = self.repository.replace_keys(self.pinned, before, after, _time(now), threshold)
            append_history(self.folder / HISTORY, "keys", root=version)
            return version

    def sign_task(
        self, job: str, payload: Mapping[str, Any], keys: OnlineKeys, now: float | None = None
    ) -> bytes:
        """Sign the task of a job; the bytes that its devices get. Tasks past their time are no longer listed.

        Args:
            job: id.
            payload: plain values; `expires` in seconds since 1970; `population` is put in.
            keys: with the key of tasks.
            now: seconds since 1970; None: the clock.

        Raises:
            RegistryError, BadContent: it cannot be written, or the payload cannot be JSON.
        """
        at = _time(now)
        content = canonical(dict(payload) | {"population": self.population, "job": job})
        with self._writing():
            current = [t for t in self.state().tasks.values() if (t.custom or {}).get("expires", 0) > at]
            path = task_target(self.population, job)
            task = target_of(path, content, expires=int(payload["expires"]))
            self.repository.change(
                self.pinned, keys, at, tasks=[*(t for t in current if t.path != path), task]
            )
            append_history(self.folder / HISTORY, "task", job=job)
        return content

    def history(self) -> list[dict[str, Any]]:
        """Everything that was done, oldest first.

        Raises:
            RegistryError: the file is broken.
        """
        return read_history(self.folder / HISTORY)

    def hashes(self, manifest: Manifest, *, deltas: bool = True) -> dict[str, str]:
        """SHA-256 of each file that devices may fetch of a version, by name."""
        found = {name: entry.sha256 for name, entry in manifest.files.items()}
        if deltas:
            found |= {delta_name(base): entry.sha256 for base, entry in manifest.deltas.items()}
        return found | {MANIFEST_FILE: FileEntry.of(manifest.to_bytes()).sha256}

    def _promote(
        self, version: int, keys: OnlineKeys, alias: str, traffic: int, now: float | None, what: str
    ) -> Aliases:
        with self._writing():
            state = self.state()
            self.open(version)
            before = Aliases.of(self.population, state.models)
            after = (
                Aliases(champion=version)
                if alias == CHAMPION
                else replace(before, canary=version, canary_traffic=traffic)
            )
            facts = {"version": version, "alias": alias, "traffic": traffic}
            self._sign(self._manifests(state), after, keys, now, what, **facts)
            return after

    def _sign(
        self,
        manifests: Mapping[int, TargetFile],
        aliases: Aliases,
        keys: OnlineKeys,
        now: float | None,
        what: str,
        **facts: Any,
    ) -> None:
        """Said before it is done: an entry without effect shows beside the aliases, an effect without entry never."""
        listed = [*manifests.values(), *aliases.entries(self.population, manifests)]
        for version in set(aliases.named.values()):
            manifest = read_manifest(self.packages / str(version), manifests[version].hashes["sha256"])
            listed += self._files(manifest)
            self._link(manifest)
        append_history(self.folder / HISTORY, what, **facts)
        self.repository.change(self.pinned, keys, _time(now), models=listed)

    def _files(self, manifest: Manifest) -> list[TargetFile]:
        """Targets of what a manifest names."""
        version = manifest.version
        entries = {name: (entry, {"version": version}) for name, entry in manifest.files.items()}
        for base, entry in manifest.deltas.items():
            entries[delta_name(base)] = (entry, {"version": version, "base": base})
        return [
            TargetFile(
                entry.size,
                {"sha256": entry.sha256},
                model_target(self.population, version, name),
                {"custom": custom},
            )
            for name, (entry, custom) in entries.items()
        ]

    def _link(self, manifest: Manifest) -> None:
        """The names under which consistent snapshots are fetched, for web servers that hand out the folder."""
        folder = self.packages / str(manifest.version)
        for name, sha256 in self.hashes(manifest).items():
            with suppress(FileExistsError):
                os.link(folder / name, folder / hashed_name(sha256, name))

    def _manifests(self, state: State) -> dict[int, TargetFile]:
        """Targets of all manifests, by version."""
        found = {}
        for path, target in state.models.items():
            if path.endswith(f"/{MANIFEST_FILE}"):
                found[int(path.split("/")[2])] = target
        return found

    def _sha256(self, version: int) -> str:
        target = self._manifests(self.state()).get(version)
        if target is None:
            raise RegistryError(f"model version {version} of {self.population} {UNSIGNED}")
        return target.hashes["sha256"]

    def _folders(self) -> list[int]:
        if not self.packages.exists():
            return []
        return [int(p.name) for p in self.packages.iterdir() if p.is_dir() and p.name.isdecimal()]

    def _can_be_opened(self, version: int) -> bool:
        with suppress(UpdateRejected, RegistryError):
            self.open(version)
            return True
        return False

    def _ever_published(self) -> list[int]:
        """Numbers that are never given again, also when their folders are gone."""
        said = (entry.get("version") for entry in self.history())
        return [v for v in said if isinstance(v, int)]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, in any process; another one is waited for, but not for long."""
        try:
            with (self.folder / LOCK).open("w") as file:
                self._take(file.fileno())
                self._sweep()
                yield
        except OSError as error:
            raise RegistryError(f"the registry {self.folder} cannot be written ({error.strerror})") from error

    def _take(self, lock: int) -> None:
        """Wait for a lock; a service that renews holds it for moments.

        Raises:
            RegistryError: another process holds it for too long.
        """
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise RegistryError(
                        f"another process is writing to the registry of {self.population}: try again"
                    ) from error
                time.sleep(0.02)

    def _sweep(self) -> None:
        """Remove what a crash left of packages that never became versions."""
        if self.packages.exists():
            for path in self.packages.iterdir():
                if path.is_dir() and _ASIDE.fullmatch(path.name):
                    shutil.rmtree(path)


def _time(now: float | None) -> float:
    return time.time() if now is None else now
