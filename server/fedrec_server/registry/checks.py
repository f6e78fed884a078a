"""Whether a published version is what it says: signature, number, every hash, where its deltas lead, nothing else.

Out of scope: whether devices would still take it (`fedrec.wire.manifest.check_update`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.errors import RegistryError, UpdateRejected
from fedrec.wire.manifest import MANIFEST_FILE, Manifest
from fedrec.wire.package import delta_name, files_from_delta, read_file

if TYPE_CHECKING:
    from fedrec_server.registry.registry import Registry

GOOD = "good"


def state_of(registry: Registry, version: int) -> str:
    """ "good", or what is wrong with a version."""
    try:
        manifest = registry.open(version).manifest
        if manifest.version != version:
            return f"says it is version {manifest.version}"
        _check_deltas(registry, manifest)
        _check_restored(registry, manifest)
    except (UpdateRejected, RegistryError) as error:
        return str(error)
    known = {MANIFEST_FILE, *manifest.files, *map(delta_name, manifest.deltas)}
    strange = sorted(path.name for path in registry.path(version).iterdir() if path.name not in known)
    return f"has files that nobody signed: {', '.join(strange)[:200]}" if strange else GOOD


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


def _check_restored(registry: Registry, manifest: Manifest) -> None:
    """Whether weights that are said to be earlier ones are those.

    Raises:
        RegistryError: they are not.
    """
    old = manifest.restores
    if old in registry.versions() and registry.manifest(old).tensors != manifest.tensors:
        raise RegistryError(f"says it has the weights of {old}, and has not")
