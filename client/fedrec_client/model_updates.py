"""The models on a device: which one serves, and how a newer one takes its place.

A new model is fetched beside the one in use, resumed where an earlier attempt was cut off, checked whole, moved into
place and only then swapped in; calls that are under way finish with the model they began with. Whatever is wrong is
refused with a typed error, and the last good model serves on, also after a restart. The highest version and the
highest key serial that were ever accepted lie in the sealed store, so that deleting the folder opens no way back.

A clock that is behind cannot revive what has expired: times are never taken to be earlier than the newest signature
that was accepted. A model past its expiry still serves (offline must work) and says so; it does not train.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedrec.errors import BadContent, RegistryError, StoreFull, UpdateRejected
from fedrec.ranking.shelf import Shelf
from fedrec.wire.manifest import MANIFEST_FILE, FileEntry, Manifest, check_update
from fedrec.wire.package import (
    Package,
    check_package,
    delta_name,
    files_from_delta,
    open_package,
    place_folder,
    sync_folder,
)
from fedrec_client.results import ModelInfo
from fedrec_client.store.base import Store
from fedrec_client.transport import Transport

log = logging.getLogger(__name__)

RECORD = "models"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Known:
    """What the device remembers of models.

    Attributes:
        current, previous: versions that lie in the folder; 0: none.
        highest: version ever accepted.
        serial: highest of a round key.
        newest: the latest signing time that was accepted, in seconds since 1970.
        damaged: a version that was accepted, was found damaged here, and may be fetched once more; 0: none.
    """

    current: int = 0
    previous: int = 0
    highest: int = 0
    serial: int = 0
    newest: int = 0
    damaged: int = 0


@dataclass(frozen=True)
class Served:
    """A model in use: verified, with what lists need of it."""

    package: Package
    shelf: Shelf

    @property
    def version(self) -> int:
        """Of the manifest."""
        return self.package.manifest.version


class Models:
    """The models of one population on one device.

    Args:
        folder: for them alone.
        root: [32] the pinned public key.
        population: of this device.
        store: remembers what must not be forgotten.
        client_version: of the SDK.
        now: the device's clock.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        population: str,
        store: Store,
        client_version: str,
        now: Callable[[], float],
    ) -> None:
        self._folder, self._root, self._population = folder, root, population
        self._store, self._client_version, self._now = store, client_version, now
        self.problem = ""
        self.served: Served | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open()

    @property
    def state(self) -> str:
        """ "good", "expired", "none", or what is wrong."""
        if self.served is None:
            return self.problem or "none"
        if self.now() > self.served.package.manifest.expires:
            return "expired"
        return self.problem or "good"

    @property
    def known(self) -> Known:
        """What the store remembers."""
        data = self._store.get(RECORD)
        return Known() if data is None else Known(**json.loads(data))

    def now(self) -> float:
        """The clock, never before the newest signature that was accepted."""
        return max(self._now(), float(self.known.newest))

    def update(self, transport: Transport, version: int) -> ModelInfo | None:
        """Take a version into use; None when it is in use already.

        Raises:
            UpdateRejected: it is refused; the model in use stays.
            ServiceError: it could not be fetched; what came is kept for the next attempt.
            StoreFull: no room for it; the model in use stays.
        """
        if self.served is not None and self.served.version == version:
            return None
        known = self.known
        document = transport.manifest(self._population, version)
        manifest, serial = check_update(
            document,
            self._root,
            self._population,
            now=self.now(),
            client_version=self._client_version,
            highest_version=known.highest - (version == known.damaged == known.highest),
            min_serial=known.serial,
        )
        if manifest.version != version:
            raise BadContent(f"asked for model version {version}, got {manifest.version}: fetch it again")
        try:
            files, downloaded, by_delta = self._fetch(transport, manifest)
            package = check_package(manifest, files, serial)
            shutil.rmtree(
                self._folder / str(version), ignore_errors=True
            )  # of a crash before it was taken into use
            place_folder(self._folder / str(version), files | {MANIFEST_FILE: document})
        except (OSError, RegistryError) as error:
            raise StoreFull(f"no room for model version {version} ({error}): free some space") from error
        served = Served(package, Shelf(package.model, package.items))
        after = replace(
            known,
            current=version,
            previous=self.served.version if self.served else 0,
            highest=version,
            serial=max(serial, known.serial),
            newest=max(manifest.created, known.newest),
            damaged=0,
        )
        self._store.put(RECORD, json.dumps(asdict(after)).encode())
        self.served, self.problem = served, ""
        self._tidy(after)
        return ModelInfo(
            version,
            manifest.created,
            manifest.expires,
            manifest.n_items,
            manifest.model_kind,
            downloaded,
            by_delta,
            dict(manifest.privacy),
        )

    def _open(self) -> None:
        """Serve the current model, or the one before where that is damaged."""
        known = self.known
        for version in filter(None, (known.current, known.previous)):
            try:
                # Whether a key was in its time was judged when its model was taken.
                package = open_package(
                    self._folder / str(version), self._root, self._population, float(known.newest)
                )
            except UpdateRejected as error:
                self.problem = f"model version {version} is damaged: {error}"
                log.warning("%s", self.problem)
            else:
                self.served = Served(package, Shelf(package.model, package.items))
                break
        serving = self.served.version if self.served else 0
        if serving != known.current:
            back = replace(known, current=serving, previous=0, damaged=known.current)
            self._store.put(RECORD, json.dumps(asdict(back)).encode())

    def _fetch(self, transport: Transport, manifest: Manifest) -> tuple[dict[str, bytes], int, bool]:
        """The files of a manifest, how many bytes came, and whether a delta was enough."""
        base = self.served.version if self.served else 0
        entry = manifest.deltas.get(base)
        files: dict[str, bytes] = {}
        downloaded = 0
        if entry is not None:
            try:
                delta, downloaded = self._download(transport, manifest.version, delta_name(base), entry)
                files = files_from_delta(manifest, delta, self._folder / str(base))
                files = {
                    name: data for name, data in files.items() if FileEntry.of(data) == manifest.files[name]
                }
            except BadContent as error:
                log.warning(
                    "delta to model version %d is of no use (%s): fetching all of it", manifest.version, error
                )
        by_delta = bool(files)
        for name, entry in manifest.files.items():
            if name not in files:
                files[name], size = self._download(transport, manifest.version, name, entry)
                downloaded += size
        return files, downloaded, by_delta

    def _download(self, transport: Transport, version: int, name: str, entry: FileEntry) -> tuple[bytes, int]:
        """A file, going on where an earlier attempt was cut off, and how many bytes came now."""
        folder = self._folder / PARTIAL / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        have = path.stat().st_size if path.exists() else 0
        if have > entry.size:
            path.unlink()
            have = 0
        came = 0
        with path.open("ab") as file:
            if have < entry.size:
                for piece in transport.download(self._population, version, name, have):
                    came += len(piece)
                    if have + came > entry.size:
                        break
                    file.write(piece)
                file.flush()
        content = path.read_bytes()
        try:
            entry.check(name, content)
        except BadContent:  # whole and wrong: what came is of no use
            path.unlink()
            raise
        return content, came

    def _tidy(self, known: Known) -> None:
        """Remove versions that are neither in use nor the one before."""
        keep = {str(known.current), str(known.previous)}
        for path in self._folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
        sync_folder(self._folder)
