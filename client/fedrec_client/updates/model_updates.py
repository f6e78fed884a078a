"""The models on a device: which one serves, and how another one takes its place.

Which version is in use is what signed metadata says (`trusted_metadata`, rules of The Update Framework); versions are
names and may go back when newer metadata says so. A model is fetched beside the one in use, resumed where an earlier
attempt was cut off, checked whole, moved into place and only then swapped in; calls under way finish with the model
they began with. Whatever is wrong is refused with a typed error, and the last good model serves on, also after a
restart: the hash of its manifest is in the sealed store.

Past the time until which the signed list of models was current, a model serves on (offline must work) and says
"expired"; the device does not train with it. Whether a device takes a canary it draws for itself, from a secret that
never leaves it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrec.core.errors import BadContent, BadSignature, FedrecError, RegistryError, StoreFull, UpdateRejected
from fedrec.core.files import sync_folder
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.model import ServingModel
from fedrec.wire.layout import ALL_TRAFFIC, CANARY, CHAMPION, alias_target, model_target, task_target
from fedrec.wire.manifest import MANIFEST_FILE, FileEntry, Manifest, check_for_device
from fedrec.wire.package import (
    Package,
    check_package,
    delta_name,
    files_from_delta,
    open_package,
    place_folder,
)
from fedrec.wire.strict_json import parse_json
from fedrec_client.store.base import Store
from fedrec_client.store.trusted_time import RECORD as CLOCK
from fedrec_client.store.trusted_time import REFUSED, TrustedTime
from fedrec_client.terms.results import ModelInfo
from fedrec_client.updates.transport import WORKING, Transport

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

    from fedrec_client.updates._trusted_metadata import TrustedMetadata

log = logging.getLogger(__name__)

RECORD, DRAW = "models", "canary-draw"
#: Folder of metadata while an update runs.
#: Beginnings of the records that must outlive a deletion of the user's data: they are public, and protect.
PUBLIC_RECORDS = (RECORD, CLOCK, REFUSED, "tuf/")


@dataclass(frozen=True)
class Known:
    """What the device remembers of models.

    Attributes:
        current, previous: versions that lie in the folder; 0: none.
        manifests: by version, the SHA-256 of its manifest that was signed.
        expires: until when the signed list of models was current, in seconds since 1970.
        metadata: versions of the metadata last accepted, by role.
    """

    current: int = 0
    previous: int = 0
    manifests: Mapping[str, str] = field(default_factory=dict)
    expires: float = 0.0
    metadata: Mapping[str, int] = field(default_factory=dict)

    def sha256(self, version: int) -> str:
        """Of the manifest of a version; empty: none was accepted."""
        return self.manifests.get(str(version), "")


@dataclass(frozen=True)
class Served:
    """A model in use: verified, with what lists need of it."""

    package: Package
    item_index: ItemIndex[ServingModel]

    @property
    def version(self) -> int:
        """Of the manifest."""
        return self.package.manifest.version


class Models:
    """The models of one population on one device.

    Args:
        folder: for them alone.
        root: root metadata that the app pins.
        population: of this device.
        store: remembers what must not be forgotten.
        client_version: of the SDK.
        clock: seconds since 1970, by the device.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        population: str,
        store: Store,
        client_version: str,
        clock: Callable[[], float],
    ) -> None:
        self._folder, self._root, self._population = folder, root, population
        self._store, self._client_version, self._clock = store, client_version, clock
        self.problem = ""
        self.served: Served | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open()

    @property
    def state(self) -> str:
        """ "good", "expired", "none", or what is wrong."""
        if self.served is None:
            return self.problem or "none"
        time = TrustedTime(self._store)
        if max(self.now(), time.known_late(time.times.signed)) > self.known.expires:
            return "expired"
        return self.problem or "good"

    @property
    def known(self) -> Known:
        """What the store remembers."""
        data = self._store.get(RECORD)
        return Known() if data is None else Known(**json.loads(data))

    def now(self) -> float:
        """The time by which expiry is checked; it never goes back."""
        return TrustedTime(self._store).now(self._clock())

    def update(self, transport: Transport) -> ModelInfo | None:
        """Take the version into use that signed metadata names; None when it is in use already, or there is none.

        Raises:
            UpdateRejected: it is refused; the model in use stays.
            ServiceError: it could not be fetched; what came is kept for the next attempt.
            StoreFull: no room for it; the model in use stays.
        """
        try:
            with self._metadata(transport) as metadata:
                wanted = self._wanted(metadata)
                if wanted is None:
                    return None
                version, target = wanted
                sha256 = _sha256(target)
                known = replace(self.known, expires=metadata.models_expire, metadata=metadata.versions)
                if self.served is not None and known.sha256(self.served.version) == sha256:
                    self._remember(known)
                    self.problem = ""
                    return None
                return self._take(metadata, known, version, target)
        except (OSError, RegistryError) as error:
            raise StoreFull(f"no room for another model version ({error}): free some space") from error

    def begin_with(self, start: Transport) -> None:
        """Take a start model that the app brings into use, when there is no model; what is wrong with it is told.

        Its metadata is verified by the pinned root as of the time it was signed: it came with the app, and there is
        no service to ask for newer.
        """
        if self.served is not None:
            return
        try:
            self.update(start)
        except FedrecError as error:
            self.problem = f"the app's start model is refused: {error}"
            log.warning("%s", self.problem)

    def verified_task(self, transport: Transport, job: str, document: bytes) -> dict[str, Any]:
        """The task of a job, once its hash is signed; when it ends is for the caller to evaluate.

        Raises:
            BadSignature: no such task is signed.
            UpdateRejected, ServiceError, StoreError: see `trusted_metadata.refreshed`.
        """
        with self._metadata(transport) as metadata:
            target = metadata.target(task_target(self._population, job))
            if target is None:
                raise BadSignature(f"no task of job {job[:8]} is signed: it is refused")
            if FileEntry.of(document) != FileEntry(target.length, _sha256(target)):
                raise BadContent(f"the task of job {job[:8]} is not the signed one: it is refused")
        return parse_json(document)

    def _metadata(self, transport: Transport) -> AbstractContextManager[TrustedMetadata]:
        from fedrec_client.updates._trusted_metadata import refreshed

        clock = getattr(transport, "signing_time", self._clock)
        return refreshed(self._folder, self._store, self._root, self._population, transport, clock)

    def _wanted(self, metadata: TrustedMetadata) -> tuple[int, TargetFile] | None:
        """Version and signed entry of the model that this device is to use; None: there is none yet."""
        canary = metadata.target(alias_target(self._population, CANARY))
        if canary is not None and self._draw(_custom(canary, "version")) < _custom(canary, "traffic"):
            return _custom(canary, "version"), canary
        champion = metadata.target(alias_target(self._population, CHAMPION))
        return None if champion is None else (_custom(champion, "version"), champion)

    def _draw(self, version: int) -> int:
        """From 0 to `ALL_TRAFFIC` - 1; the same for the same version on the same device."""
        secret = self._store.get(DRAW)
        if secret is None:
            secret = secrets.token_bytes(16)
            self._store.put(DRAW, secret)
        digest = hashlib.sha256(f"canary {version} ".encode() + secret).digest()
        return int.from_bytes(digest[:8], "big") % ALL_TRAFFIC

    def _take(self, metadata: TrustedMetadata, known: Known, version: int, alias: TargetFile) -> ModelInfo:
        target = metadata.target(model_target(self._population, version, MANIFEST_FILE))
        if target is None or target.hashes != alias.hashes:
            raise BadContent(f"what is signed of model version {version} contradicts itself: fetch it again")
        package, downloaded, by_delta = self._kept(known, version, alias), 0, False
        if package is None:
            content = metadata.download(target)
            manifest = Manifest.parse(content)
            check_for_device(manifest, self._population, version, self._client_version)
            files, by_delta = self._fetch(metadata, manifest)
            package = check_package(manifest, files)
            downloaded = metadata.came
            shutil.rmtree(self._folder / str(version), ignore_errors=True)  # of a crash before it was in use
            place_folder(self._folder / str(version), files | {MANIFEST_FILE: content})
        served = Served(package, ItemIndex(package.model, package.items))
        previous = self.served.version if self.served else 0
        manifests = {str(v): known.sha256(v) for v in (previous,) if v}
        after = replace(
            known,
            current=version,
            previous=previous,
            manifests=manifests | {str(version): _sha256(alias)},
        )
        self._remember(after)
        self.served, self.problem = served, ""
        self._tidy(after)
        manifest = package.manifest
        log.info(
            "model version %d in use, manifest %s, metadata %s", version, _sha256(alias), dict(after.metadata)
        )
        return ModelInfo(
            version,
            manifest.created,
            int(after.expires),
            manifest.n_items,
            manifest.model_kind,
            downloaded,
            by_delta,
            dict(manifest.privacy),
        )

    def _kept(self, known: Known, version: int, alias: TargetFile) -> Package | None:
        """The version before, when that is the one to use again and is whole."""
        if version != known.previous or known.sha256(version) != _sha256(alias):
            return None
        try:
            return open_package(self._folder / str(version), known.sha256(version))
        except UpdateRejected:
            return None

    def _open(self) -> None:
        """Serve the current model, or the one before where that is damaged."""
        known = self.known
        for version in filter(None, (known.current, known.previous)):
            try:
                package = open_package(self._folder / str(version), known.sha256(version))
            except UpdateRejected as error:
                self.problem = f"model version {version} is damaged: {error}"
                log.warning("%s", self.problem)
            else:
                self.served = Served(package, ItemIndex(package.model, package.items))
                break
        serving = self.served.version if self.served else 0
        if serving != known.current:
            self._remember(replace(known, current=serving, previous=0))

    def _remember(self, known: Known) -> None:
        data = json.dumps(asdict(known), sort_keys=True).encode()
        if data != self._store.get(RECORD):
            self._store.put(RECORD, data)

    def _fetch(self, metadata: TrustedMetadata, manifest: Manifest) -> tuple[dict[str, bytes], bool]:
        """The files of a manifest, and whether a delta was enough."""
        base = self.served.version if self.served else 0
        files: dict[str, bytes] = {}
        if base in manifest.deltas:
            try:
                delta = self._download(metadata, manifest, delta_name(base), manifest.deltas[base])
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
                files[name] = self._download(metadata, manifest, name, entry)
        return files, by_delta

    def _download(self, metadata: TrustedMetadata, manifest: Manifest, name: str, entry: FileEntry) -> bytes:
        """A file of a model; what is signed of it must be what its manifest says."""
        target = metadata.target(model_target(self._population, manifest.version, name))
        if target is None or FileEntry(target.length, _sha256(target)) != entry:
            raise BadContent(f"{name} of model version {manifest.version} is not signed: fetch it again")
        return metadata.download(target)

    def _tidy(self, known: Known) -> None:
        """Remove versions that are neither in use nor the one before."""
        keep = {str(known.current), str(known.previous), WORKING}
        for path in self._folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
        sync_folder(self._folder)


def _sha256(target: TargetFile) -> str:
    """Of a target, in hex.

    Raises:
        BadContent: it was signed with another hash alone.
    """
    if "sha256" not in target.hashes:
        raise BadContent(f"what is signed of {target.path:.80} has no SHA-256: update the app")
    return str(target.hashes["sha256"])


def _custom(target: TargetFile, name: str) -> int:
    """A number that is signed with a target.

    Raises:
        BadContent: there is none.
    """
    value = target.custom.get(name) if isinstance(target.custom, dict) else None
    if type(value) is not int or value < 0:
        raise BadContent(f"what is signed of {target.path:.80} lacks its {name}: update the app")
    return value
