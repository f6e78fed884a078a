"""Whether a published version is what was signed: manifest, every hash, where its deltas lead, nothing else.

Out of scope: signatures of the metadata, which are verified before anything is read (`registry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.errors import RegistryError, UpdateRejected
from fedrec.wire.layout import hashed_name
from fedrec.wire.manifest import MANIFEST_FILE, Manifest
from fedrec.wire.package import delta_name, files_from_delta, read_file

if TYPE_CHECKING:
    from fedrec_server.registry.registry import Registry

GOOD = "good"
UNSIGNED = "is not signed: a publication was cut off before it counted, or the metadata is an older copy"


def state_of(registry: Registry, version: int) -> str:
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


def _check_deltas(registry: Registry, manifest: Manifest) -> None:
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
