"""Whether a published version is what was signed: manifest, every hash, where its deltas lead, nothing else.

Out of scope: signatures of the metadata, which are verified before anything is read (`registry`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fedrec.core.errors import RegistryError, UpdateRejected
from fedrec.wire.layout import hashed_name
from fedrec.wire.manifest import MANIFEST_FILE, Manifest
from fedrec.wire.package import delta_name, files_from_delta, read_file

GOOD = "good"
UNSIGNED = "is not signed: a publication was cut off before it counted, or the metadata is an older copy"


class _Version(Protocol):
    @property
    def manifest(self) -> Manifest: ...


class Versions(Protocol):
    """What a check reads of a registry."""

    def open(self, version: int) -> _Version:
        """A version whose signatures are verified."""

    def path(self, version: int) -> Path:
        """Its folder."""

    def versions(self) -> list[int]:
        """All of them."""

    def hashes(self, manifest: Manifest) -> dict[str, str]:
        """SHA-256 in hex of each signed file."""


def state_of(registry: Versions, version: int) -> str:
    """ "good", or what is wrong with a version."""
    try:
        manifest = registry.open(version).manifest
        if manifest.version != version:
            return f"says it is version {manifest.version}"
        _check_deltas(registry, manifest)
        strange = sorted(path.name for path in registry.path(version).iterdir())
    except (UpdateRejected, RegistryError) as error:
        return str(error)
    known = {MANIFEST_FILE, *manifest.files, *map(delta_name, manifest.deltas)}
    known |= {hashed_name(sha256, name) for name, sha256 in registry.hashes(manifest).items()}
    strange = [name for name in strange if name not in known]
    return f"has files that were not signed: {', '.join(strange)[:200]}" if strange else GOOD


def _check_deltas(registry: Versions, manifest: Manifest) -> None:
    """Whether they are the signed ones, and lead here from where they begin.

    Raises:
        BadContent: they are not, or do not.
    """
    for base, entry in manifest.deltas.items():
        name = delta_name(base)
        delta = read_file(registry.path(manifest.version) / name)
        entry.check(name, delta)
        if base in registry.versions():
            for file, content in files_from_delta(manifest, delta, registry.path(base)).items():
                manifest.files[file].check(f"{file} by {name}", content)
