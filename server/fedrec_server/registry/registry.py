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
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedrec.errors import BadContent, RegistryError, UpdateRejected
from fedrec.wire.files import PUBLIC, atomic_write
from fedrec.wire.manifest import MANIFEST_FILE, MAX_VERSION, Manifest, check_population, verify_manifest
from fedrec.wire.package import Package, Terms, open_package, read_file, write_package
from fedrec.wire.signing import MANIFEST, RoundKey, SignedDocument, parse_json, read_public
from fedrec_server.registry.aliases import ALL_TRAFFIC, Aliases
from fedrec_server.registry.checks import state_of
from fedrec_server.registry.history import append_history, read_history

ALIASES, HISTORY, ROOT_KEY, LOCK = "aliases.json", "history.jsonl", "root.pub", ".lock"
#: A package that is being written (`place_folder`).
_ASIDE = re.compile(r"\.\d+\.[0-9a-f]+\.tmp")


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
            atomic_write(path, (public_root.hex() + "\n").encode(), PUBLIC)
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
        return Aliases.read(self.folder / ALIASES)

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
        return self._verified(version)[0]

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
        """Every version that is there or in use: "good", or what is wrong with it."""
        found = {version: state_of(self, version) for version in self.versions()}
        for name, version in self.aliases.named.items():
            found.setdefault(version, f"is {name}, and not there: restore it, or promote another")
        return dict(sorted(found.items()))

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
            highest = max(before.champion, before.canary)
            if version < highest:
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
        """Everything that was done, oldest first.

        Raises:
            RegistryError: the file is broken.
        """
        return read_history(self.folder / HISTORY)

    def _again(self, version: int, created: int, key: RoundKey, lifetime_days: float) -> Manifest:
        old = self.open(version).manifest
        files = {name: read_file(self.path(version) / name) for name in old.files}
        terms = Terms(0, created, lifetime_days, old.min_client_version, old.privacy, restores=version)
        return self._publish(files, terms, key)

    def _publish(self, files: Mapping[str, bytes], terms: Terms, key: RoundKey) -> Manifest:
        self._check_key(key, terms.created)
        version = 1 + max([*self.versions(), *self._ever_published()], default=0)
        bases = {v: self.path(v) for v in self.aliases.named.values() if self._can_be_opened(v)}
        manifest = write_package(
            self.folder / str(version), files, replace(terms, version=version), key, bases
        )
        append_history(self.folder / HISTORY, "publish", version=version, restores=terms.restores)
        return manifest

    def _can_be_opened(self, version: int) -> bool:
        with suppress(UpdateRejected, RegistryError):
            self.open(version)
            return True
        return False

    def _ever_published(self) -> list[int]:
        """Numbers that are never given again, also when their folders are gone: devices may have had them."""
        said = (entry.get("version") for entry in self.history())
        return [*(v for v in said if isinstance(v, int)), *self.aliases.named.values()]

    def _check_key(self, key: RoundKey, created: int) -> None:
        """Whether devices would believe what a key signs now; nothing is written before that is sure.

        Raises:
            RegistryError: they would not.
        """
        if key.delegation.population != self.population:
            raise RegistryError(
                f"a round key for {key.delegation.population!r} signs nothing for {self.population!r}: "
                "delegate another"
            )
        try:
            key.sign(MANIFEST, {}).verify(
                self.public_root,
                kind=MANIFEST,
                population=self.population,
                now=created,
                min_serial=self._highest_serial(),
            )
        except UpdateRejected as error:
            raise RegistryError(
                f"devices would refuse it, so nothing was published ({error}): give a key of this root, in its time"
            ) from error

    def _highest_serial(self) -> int:
        """Of the round keys whose manifests devices may have seen."""
        serials = [0]
        for version in self.versions():
            with suppress(UpdateRejected, RegistryError):
                serials.append(self._verified(version)[1])
        return max(serials)

    @staticmethod
    def _signing_time(document: bytes) -> float:
        """When a manifest says it was made: whether its key was in time then is what counts here."""
        created = parse_json(SignedDocument.parse(document).payload).get("created")
        return min(max(created, 0), MAX_VERSION) if isinstance(created, int) else 0

    def _verified(self, version: int) -> tuple[Manifest, int]:
        document = read_file(self.path(version) / MANIFEST_FILE)
        return verify_manifest(document, self.public_root, self.population, self._signing_time(document))

    def _set(self, aliases: Aliases, what: str, **facts: Any) -> None:
        """Said before it is done: an entry without effect shows beside the aliases, an effect without entry never."""
        append_history(self.folder / HISTORY, what, **facts)
        aliases.write(self.folder / ALIASES)

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
                self._sweep()
                yield
        except OSError as error:
            raise RegistryError(f"the registry {self.folder} cannot be written ({error.strerror})") from error

    def _sweep(self) -> None:
        """Remove what a crash left of packages that never became versions."""
        for path in self.folder.iterdir():
            if path.is_dir() and _ASIDE.fullmatch(path.name):
                shutil.rmtree(path)
