"""A model as it is published and kept: a folder with a manifest and the files that it names.

    manifest.json        names everything below by hash; its own hash is in the signed metadata (`repository`)
    model.safetensors    arrays and header of the serving model
    items.safetensors    ids, titles, categories, popularity, age
    privacy.json         the privacy statement
    delta-<version>.bin  what leads here from an earlier version (optional)

A folder is written aside and moved into place whole; nothing in it is believed before the hash of the manifest, of
each file and of each tensor hold. Out of scope: which package is in use (the registry, the SDK's `model_updates`),
and signatures.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedrec.core.errors import BadContent, DataError, RegistryError
from fedrec.core.files import Arrays, sync_folder
from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.ranking.read import read_model
from fedrec.wire._delta import apply_delta, make_delta, tensor_entries
from fedrec.wire.manifest import (
    ITEMS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PRIVACY_FILE,
    FileEntry,
    Manifest,
)

#: A delta that saves less than this share is not worth its place.
MAX_DELTA_SHARE = 0.6
_FILE_OF = {"model": MODEL_FILE, "items": ITEMS_FILE}


@dataclass(frozen=True)
class Package:
    """A verified model.

    Attributes:
        manifest: of which the hash was signed.
        model: that serves.
        items: in the order of its tables.
        privacy: the statement.
    """

    manifest: Manifest
    model: ServingModel = field(repr=False)
    items: Items = field(repr=False)
    privacy: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Terms:
    """What the publisher decides about a version.

    Attributes:
        version: that no other model of the population has.
        created: seconds since 1970.
        min_client_version: of the SDK.
        summary: of the privacy statement, for the manifest.
    """

    version: int
    created: int
    min_client_version: str = "0.1.0"
    summary: Mapping[str, Any] = field(default_factory=dict)


def pack_model(model: ServingModel, items: Items, privacy: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a model, without the manifest.

    Raises:
        DataError: model and items are of different numbers.
    """
    if model.n_items != len(items):
        raise DataError(
            f"a model of {model.n_items} items and {len(items)} items: give the items of its tables"
        )
    arrays, header = model.to_arrays()
    return {
        MODEL_FILE: _save(arrays, header),
        ITEMS_FILE: _save(items.to_arrays(), {}),
        PRIVACY_FILE: (json.dumps(privacy, indent=2, sort_keys=True, default=float) + "\n").encode(),
    }


def write_package(
    folder: Path,
    files: Mapping[str, bytes],
    population: str,
    terms: Terms,
    bases: Mapping[int, Path] | None = None,
) -> Manifest:
    """Put files of `pack_model` with their manifest into a new folder, whole or not at all.

    Args:
        folder: must not exist.
        files: by name.
        population: whose model.
        terms: of this version.
        bases: folders of earlier versions, from which a delta is made where it pays.

    Raises:
        RegistryError: the folder exists or cannot be written.
        BadContent: the files are no model.
    """
    if folder.exists():
        raise RegistryError(
            f"{folder} is there already: a version is never written over; publish under a higher one"
        )
    parts, headers = _parts(files)
    model = read_model(parts["model"], headers["model"])
    deltas = {
        version: delta
        for version, base in (bases or {}).items()
        if (delta := _delta_from(base, parts, headers, sum(len(files[name]) for name in _FILE_OF.values())))
    }
    manifest = Manifest(
        population=population,
        version=terms.version,
        created=terms.created,
        min_client_version=terms.min_client_version,
        model_kind=model.kind,
        n_items=model.n_items,
        files={name: FileEntry.of(content) for name, content in files.items()},
        tensors=tensor_entries(parts),
        privacy=dict(terms.summary),
        deltas={version: FileEntry.of(delta) for version, delta in deltas.items()},
    )
    place_folder(
        folder,
        {
            **files,
            **{delta_name(version): delta for version, delta in deltas.items()},
            MANIFEST_FILE: manifest.to_bytes(),
        },
    )
    return manifest


def open_package(folder: Path, manifest_sha256: str) -> Package:
    """The model of a folder, once every hash holds, beginning with that of its manifest.

    Args:
        folder: of the package.
        manifest_sha256: hex, from metadata that was verified.

    Raises:
        BadContent: something is broken or missing.
    """
    manifest = read_manifest(folder, manifest_sha256)
    files = {name: read_file(folder / name) for name in manifest.files}
    return check_package(manifest, files)


def read_manifest(folder: Path, sha256: str) -> Manifest:
    """The manifest of a folder, when it has this hash.

    Raises:
        BadContent: it is missing, another or not a valid one.
    """
    content = read_file(folder / MANIFEST_FILE)
    if FileEntry.of(content).sha256 != sha256:
        raise BadContent(f"{MANIFEST_FILE} of a model is not the one that was signed: fetch it again")
    return Manifest.parse(content)


def check_package(manifest: Manifest, files: Mapping[str, bytes]) -> Package:
    """The model of files that came with a verified manifest.

    Raises:
        BadContent: a file or a tensor is not what the manifest says.
    """
    for name, entry in manifest.files.items():
        if name not in files:
            raise BadContent(f"{name} of model version {manifest.version} is missing: fetch it again")
        entry.check(name, files[name])
    parts, headers = _parts(files)
    if tensor_entries(parts) != dict(manifest.tensors):
        raise BadContent(
            f"tensors of model version {manifest.version} are not those of its manifest: fetch it again"
        )
    try:
        model = read_model(parts["model"], headers["model"])
        items = Items.from_arrays(parts["items"])
        privacy = json.loads(files[PRIVACY_FILE])
    except (DataError, ValueError) as error:
        raise BadContent(f"model version {manifest.version} cannot be read ({error!s:.200})") from error
    if not isinstance(privacy, dict):
        raise BadContent(
            f"{PRIVACY_FILE} of model version {manifest.version} is not a valid statement: fetch it again"
        )
    if not model.n_items == len(items) == manifest.n_items or model.kind != manifest.model_kind:
        raise BadContent(
            f"model version {manifest.version} has not the items of its manifest: fetch it again"
        )
    return Package(manifest, model, items, privacy)


def files_from_delta(manifest: Manifest, delta: bytes, base: Path) -> dict[str, bytes]:
    """The model's files that an earlier version and a delta make; they still go through `check_package`.

    Raises:
        BadContent: they do not.
    """
    old, _ = _parts({name: read_file(base / name) for name in _FILE_OF.values()})
    parts, headers = apply_delta(delta, old, manifest.tensors)
    if set(parts) != set(_FILE_OF) or set(headers) != set(_FILE_OF):
        raise BadContent("delta makes other files than a model's: fetch the whole files")
    return {name: _save(parts[part], headers[part]) for part, name in _FILE_OF.items()}


def delta_name(from_version: int) -> str:
    """File that leads here from an earlier version."""
    return f"delta-{from_version}.bin"


def place_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """A new folder with these files, durable, whole or not at all.

    Raises:
        RegistryError: it cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        aside.mkdir(parents=True)
        for name, content in files.items():
            with (aside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(aside)
        aside.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RegistryError(f"{folder} cannot be written ({error.strerror}): nothing was changed") from error


def read_file(path: Path) -> bytes:
    """A file of a package.

    Raises:
        BadContent: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadContent(
            f"{path.name} of a model cannot be read ({error.strerror}): fetch it again"
        ) from error


def _save(arrays: Arrays, header: Mapping[str, Any]) -> bytes:
    metadata = {"header": json.dumps(header, sort_keys=True, default=float)}
    return bytes(save({name: np.ascontiguousarray(values) for name, values in arrays.items()}, metadata))


def _parts(files: Mapping[str, bytes]) -> tuple[dict[str, Arrays], dict[str, Any]]:
    """Arrays and headers, by "model" and "items"."""
    parts: dict[str, Arrays] = {}
    headers: dict[str, Any] = {}
    for part, name in _FILE_OF.items():
        content = files[name]
        try:
            parts[part] = dict(load(content))
            size = int.from_bytes(content[:8], "little")
            headers[part] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["header"])
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BadContent(f"{name} cannot be read ({error!s:.80}): fetch it again") from error
        if not isinstance(headers[part], dict):
            raise BadContent(f"{name} has no header: fetch it again")
    return parts, headers


def _delta_from(
    base: Path, parts: Mapping[str, Arrays], headers: Mapping[str, Any], full_bytes: int
) -> bytes | None:
    """None where a delta does not pay."""
    old, _ = _parts({name: read_file(base / name) for name in _FILE_OF.values()})
    delta = make_delta(old, parts, headers)
    return delta if len(delta) <= MAX_DELTA_SHARE * full_bytes else None
