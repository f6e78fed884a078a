"""The registry: every published model of a population, and which of them devices are to use.

    ROOT/<population>/root.pub        public root key, against which everything here is verified
    ROOT/<population>/<version>/      a model package (`fedrec.wire.package`)
    ROOT/<population>/aliases.json    champion, and perhaps a canary with its share of devices
    ROOT/<population>/history.jsonl   who did what, when

Plain files: versions only grow and are never written over, aliases change by atomic replacement, one writer at a
time. Going back publishes the old weights under a higher version, because devices refuse lower ones.
Out of scope: handing models out (`service`).
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedrec.errors import BadContent, RegistryError, UpdateRejected
from fedrec.wire.files import atomic_write, write_json
from fedrec.wire.manifest import MANIFEST_FILE, Manifest, check_population, verify_manifest
from fedrec.wire.package import Package, Terms, open_package, read_file, write_package
from fedrec.wire.signing import RoundKey, SignedDocument, parse_json, read_public

ALIASES, HISTORY, ROOT_KEY, LOCK = "aliases.json", "history.jsonl", "root.pub", ".lock"
ALL_TRAFFIC = 1000


@dataclass(frozen=True)
class Aliases:
    """Which versions are in use.

    Attributes:
        champion: for everybody; 0: none yet.
        canary: for a share of devices; 0: none.
        canary_traffic: that share, in thousandths.
    """

    champion: int = 0
    canary: int = 0
    canary_traffic: int = 0

    def version_for(self, token: str) -> int:
        """The version for a device with this token: the same for the same token, a share of all gets the canary."""
        if not self.canary or not self.canary_traffic:
            return self.champion
        digest = hashlib.sha256(f"canary {self.canary} {token}".encode()).digest()
        return (
            self.canary
            if int.from_bytes(digest[:8], "big") % ALL_TRAFFIC < self.canary_traffic
            else self.champion
        )


class Registry:
    """The models of one population.

    Args:
        root: folder of all populations.
        population: whose.

    Raises:
        RegistryError: there is none.
    """

    def __init__(self, root: Path, population: str) -> None:
        try:
            check_population(population)
        except BadContent as error:
            raise RegistryError(str(error)) from error
        self.folder, self.population = root / population, population
        if not (self.folder / ROOT_KEY).exists():
            raise RegistryError(
                f"no registry of population {population!r} in {root}: make it with `fedrec model root`"
            )

    @classmethod
    def create(cls, root: Path, population: str, public_root: bytes) -> Registry:
        """A new one.

        Raises:
            RegistryError: there is one already with another root key.
        """
        try:
            folder = root / check_population(population)
        except BadContent as error:
            raise RegistryError(str(error)) from error
        path = folder / ROOT_KEY
        if path.exists() and read_public(path) != public_root:
            raise RegistryError(
                f"{path} is there already with another key: devices pin it; make another population"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, (public_root.hex() + "\n").encode())
        except OSError as error:
            raise RegistryError(
                f"{folder} cannot be written ({error.strerror}): give another folder"
            ) from error
        return cls(root, population)

    @property
    def public_root(self) -> bytes:
        """[32] what devices pin."""
        return read_public(self.folder / ROOT_KEY)

    @property
    def aliases(self) -> Aliases:
        """As they are.

        Raises:
            RegistryError: the file is broken.
        """
        try:
            return Aliases(**json.loads((self.folder / ALIASES).read_text()))
        except FileNotFoundError:
            return Aliases()
        except (OSError, ValueError, TypeError) as error:
            raise RegistryError(
                f"{self.folder / ALIASES} cannot be read ({error}): restore it from a backup"
            ) from error

    def versions(self) -> list[int]:
        """All, rising."""
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, version: int) -> Path:
        """Folder of a version.

        Raises:
            RegistryError: there is none.
        """
        folder = self.folder / str(version)
        if not (folder / MANIFEST_FILE).exists():
            known = ", ".join(map(str, self.versions()[-5:])) or "none"
            raise RegistryError(f"{self.population} has no model version {version}: there are {known}")
        return folder

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version, its signature verified.

        Raises:
            RegistryError: there is none.
            UpdateRejected: it is not genuine.
        """
        document = read_file(self.path(version) / MANIFEST_FILE)
        return verify_manifest(document, self.public_root, self.population, self._signing_time(document))[0]

    def open(self, version: int) -> Package:
        """A version, everything verified.

        Raises:
            RegistryError: there is none.
            UpdateRejected: it is damaged or not genuine.
        """
        folder = self.path(version)
        at = self._signing_time(read_file(folder / MANIFEST_FILE))
        return open_package(folder, self.public_root, self.population, at)

    def verify(self) -> dict[int, str]:
        """Every version: "good", or what is wrong with it."""
        found: dict[int, str] = {}
        for version in self.versions():
            try:
                manifest = self.open(version).manifest
                for base, entry in manifest.deltas.items():
                    entry.check(f"delta from {base}", read_file(self.path(version) / f"delta-{base}.bin"))
                found[version] = (
                    "good" if manifest.version == version else f"says it is version {manifest.version}"
                )
            except (UpdateRejected, RegistryError) as error:
                found[version] = str(error)
        return found

    def publish(self, files: Mapping[str, bytes], terms: Terms, key: RoundKey) -> Manifest:
        """Sign files under the next version; the version in `terms` is replaced, no alias moves.

        Raises:
            RegistryError: it cannot be written, or the key is not one that this registry's devices believe.
        """
        with self._writing():
            return self._publish(files, terms, key)

    def promote(self, version: int, alias: str = "champion", traffic: int = ALL_TRAFFIC) -> Aliases:
        """Let devices use a version, all of them or a share; becoming champion ends a canary.

        Raises:
            RegistryError: it is unknown, or devices would refuse it because they have had a higher one.
        """
        if alias not in ("champion", "canary") or not 0 <= traffic <= ALL_TRAFFIC:
            raise RegistryError(
                f"promote to {alias!r:.20} with traffic {traffic}: expected champion or canary, 0 to {ALL_TRAFFIC}"
            )
        with self._writing():
            self.open(version)
            before = self.aliases
            highest = max(before.champion, before.canary if alias == "champion" else 0)
            if version < before.champion or (alias == "champion" and version < highest):
                raise RegistryError(
                    f"version {version} is below {highest}, which devices have had: "
                    f"publish its weights anew with `fedrec model rollback {version}`"
                )
            after = (
                Aliases(champion=version)
                if alias == "champion"
                else replace(before, canary=version, canary_traffic=traffic)
            )
            self._set(after, "promote", version=version, alias=alias, traffic=traffic)
            return after

    def rollback(self, to: int, created: int, key: RoundKey, lifetime_days: float = 90.0) -> Manifest:
        """Publish the weights of an earlier version under a higher one and make it champion.

        Raises:
            RegistryError, UpdateRejected: see `publish` and `open`.
        """
        with self._writing():
            made = self._again(to, created, key, lifetime_days)
            self._set(Aliases(champion=made.version), "rollback", version=made.version, restores=to)
            return made

    def renew(self, version: int, created: int, key: RoundKey, lifetime_days: float = 90.0) -> Manifest:
        """The same weights under a higher version, signed anew; no alias moves."""
        with self._writing():
            return self._again(version, created, key, lifetime_days)

    def history(self) -> list[dict[str, Any]]:
        """Everything that was done, oldest first."""
        try:
            return [json.loads(line) for line in (self.folder / HISTORY).read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _again(self, version: int, created: int, key: RoundKey, lifetime_days: float) -> Manifest:
        old = self.open(version).manifest
        files = {name: read_file(self.path(version) / name) for name in old.files}
        terms = Terms(0, created, lifetime_days, old.min_client_version, old.privacy, restores=version)
        return self._publish(files, terms, key)

    def _publish(self, files: Mapping[str, bytes], terms: Terms, key: RoundKey) -> Manifest:
        delegation = key.delegation
        if delegation.population != self.population:
            raise RegistryError(
                f"a round key for {delegation.population!r} signs nothing for {self.population!r}: delegate another"
            )
        version = max(self.versions(), default=0) + 1
        aliases = self.aliases
        bases = {v: self.path(v) for v in {aliases.champion, aliases.canary} - {0}}
        manifest = write_package(
            self.folder / str(version), files, replace(terms, version=version), key, bases
        )
        try:
            self.open(version)
        except UpdateRejected as error:
            raise RegistryError(
                f"version {version} was written and devices would refuse it ({error}): give the key of this root"
            ) from error
        self._note("publish", version=version, restores=terms.restores)
        return manifest

    def _signing_time(self, document: bytes) -> float:
        """When a manifest says it was made: whether its key was in time then is what counts here."""
        created = parse_json(SignedDocument.parse(document).payload).get("created")
        return float(created) if isinstance(created, int) else 0.0

    def _set(self, aliases: Aliases, what: str, **facts: Any) -> None:
        write_json(self.folder / ALIASES, asdict(aliases))
        self._note(what, **facts)

    def _note(self, what: str, **facts: Any) -> None:
        entry = {"what": what, "time": round(time.time()), "by": getpass.getuser()} | facts
        with (self.folder / HISTORY).open("a") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, in any process."""
        try:
            with (self.folder / LOCK).open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise RegistryError(
                        f"somebody else is writing to the registry of {self.population}: try again"
                    ) from error
                yield
        except OSError as error:
            raise RegistryError(f"the registry {self.folder} cannot be written ({error.strerror})") from error
