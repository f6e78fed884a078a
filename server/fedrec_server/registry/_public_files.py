"""Which files of a registry may be handed out, by the path that a device asks for.

No path is ever made of what was asked: metadata is held against a listing of its folder, targets against the signed
lists. Out of scope: reading them.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

from fedrec.core.errors import RegistryError, UpdateRejected
from fedrec.wire.layout import METADATA_FOLDER, MODELS, TARGETS_FOLDER, hashed_name
from fedrec_server.registry.registry import Registry

_METADATA = re.compile(r"([1-9][0-9]{0,18}\.)?(root|targets|models|tasks|snapshot|timestamp)\.json")


class PublicFiles:
    """The public files of a registry; safe for several threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._targets: dict[str, Path] = {}
        self._versions: frozenset[int] = frozenset()

    def versions(self) -> frozenset[int]:
        """Of the models that are signed now."""
        self._listed()
        return self._versions

    def find(self, path: str) -> Path | None:
        """The file of a path like "metadata/timestamp.json" or "targets/..."; None: there is none to hand out."""
        top, _, rest = path.partition("/")
        if top == METADATA_FOLDER and _METADATA.fullmatch(rest):
            folder = self._registry.repository.folder
            return next((file for file in folder.iterdir() if file.name == rest), None)
        return self._listed().get(rest) if top == TARGETS_FOLDER else None

    def _listed(self) -> dict[str, Path]:
        """Targets of models that are signed now, by the path under which they are fetched; read anew on a change."""
        with self._lock:
            stat = (self._registry.repository.folder / "timestamp.json").stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                self._targets, self._seen = self._read(), seen
            return self._targets

    def _read(self) -> dict[str, Path]:
        try:
            models = self._registry.state().models
        except UpdateRejected as error:
            raise RegistryError(str(error)) from error
        found, versions = {}, set()
        for path, target in models.items():
            parts = path.split("/")
            if len(parts) == 4 and parts[1] == MODELS:
                versions.add(int(parts[2]))
                found[hashed_name(target.hashes["sha256"], path)] = (
                    self._registry.packages / parts[2] / parts[3]
                )
        self._versions = frozenset(versions)
        return found
