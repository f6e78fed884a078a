"""The start model of an app: the champion with its signed metadata, copied into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedrec.core.errors import RegistryError
from fedrec.wire.layout import METADATA_FOLDER, TARGETS_FOLDER, hashed_name, model_target
from fedrec.wire.manifest import Manifest
from fedrec_server.registry.registry import Registry


def write_bundle(registry: Registry, folder: Path) -> Manifest:
    """Copy what a new app needs to begin with: metadata and the champion's files, into a new folder.

    Raises:
        RegistryError: there is no champion, or the folder is there already or cannot be written.
    """
    state = registry.state()
    version = registry.aliases.champion
    if not version:
        raise RegistryError(f"{registry.population} has no champion: promote a model first")
    manifest = registry.manifest(version)
    names = [f"{n}.root.json" for n in range(1, state.root.version + 1)]
    names += ["timestamp.json", f"{state.snapshot.version}.snapshot.json"]
    names += [f"{signed.version}.{role}.json" for role, signed in state.roles.items()]
    wanted = {f"{METADATA_FOLDER}/{name}": registry.repository.folder / name for name in names}
    for name, sha256 in registry.hashes(manifest, deltas=False).items():
        target = hashed_name(sha256, model_target(registry.population, version, name))
        wanted[f"{TARGETS_FOLDER}/{target}"] = registry.path(version) / name
    try:
        folder.mkdir(parents=True)
        for name, path in wanted.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    except OSError as error:
        raise RegistryError(f"{folder} cannot be written ({error.strerror}): give a new folder") from error
    return manifest
