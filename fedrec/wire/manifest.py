"""The manifest of a served model: canonical JSON that names everything else by hash.

Each file, each tensor in it, and the small files that lead from an earlier version to this one. The manifest is a
target of the signed repository (`repository`): who may sign it, whether it is the newest and until when it is current
are matters of the repository's metadata, not of a field in here. A version is a name, not an order: going back is
signing an earlier one as champion again. Out of scope: the files themselves (`package`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import BadContent, ClientTooOld, WrongPopulation
from fedrec.wire.strict_json import canonical, parse_json

MANIFEST_FILE = "manifest.json"
MODEL_FILE, ITEMS_FILE, PRIVACY_FILE = "model.safetensors", "items.safetensors", "privacy.json"
REQUIRED_FILES = (MODEL_FILE, ITEMS_FILE, PRIVACY_FILE)
MAX_FILE_BYTES = 4 << 30
MAX_MANIFEST_BYTES = 4 << 20
MAX_VERSION = 1 << 53
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_POPULATION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CLIENT = re.compile(r"\d{1,5}(\.\d{1,5}){0,3}")
_DTYPE = re.compile(r"\|[biu]1|<[iu][248]|<f[248]")
_TENSOR = re.compile(r"(model|items)/.{1,200}")
_DELTA = re.compile(r"delta-[0-9]+\.bin")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes, and SHA-256 in hex."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 0 <= self.size <= MAX_FILE_BYTES:
            raise ValueError(f"a file of size {self.size!r:.40}")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError("a hash that is none")

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Of these bytes."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def check(self, name: str, content: bytes) -> None:
        """Whether these are the bytes.

        Raises:
            BadContent: they are not.
        """
        if len(content) != self.size or FileEntry.of(content) != self:
            raise BadContent(
                f"{name} ({len(content)} bytes) is not the file of its manifest ({self.size} bytes): "
                "fetch it again"
            )


@dataclass(frozen=True)
class TensorEntry:
    """Data type as numpy writes it ("<f4"), shape, and SHA-256 of the bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or not _DTYPE.fullmatch(self.dtype):
            raise ValueError(f"a tensor of {self.dtype!r:.20}")
        if len(self.shape) > 4 or any(type(n) is not int or n < 0 for n in self.shape):
            raise ValueError(f"a tensor of shape {self.shape!r:.60}")
        if self.nbytes > MAX_FILE_BYTES or not _SHA256.fullmatch(self.sha256):
            raise ValueError("a tensor that is too large, or has no hash")

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        size = np.dtype(self.dtype).itemsize
        for n in self.shape:
            size *= n
        return size

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Self:
        """Of this array."""
        return cls(
            values.dtype.str, values.shape, hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
        )


@dataclass(frozen=True)
class Manifest:
    """One version of a model for one population.

    Attributes:
        population: small letters, digits and hyphens.
        version: from 1.
        created: seconds since 1970.
        min_client_version: of the SDK, e.g. "0.1.0".
        model_kind: of the serving model.
        n_items: I.
        files: by name; `REQUIRED_FILES` at least.
        tensors: by "model/name" and "items/name".
        privacy: summary of the statement in `privacy.json`: unit, epsilon, delta, aggregator.
        deltas: by earlier version, the file that leads from it to this one.

    Raises:
        BadContent: a field is out of range, or contradicts another.
    """

    population: str
    version: int
    created: int
    min_client_version: str
    model_kind: str
    n_items: int
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]
    privacy: Mapping[str, Any] = field(default_factory=dict)
    deltas: Mapping[int, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_population(self.population)
        numbers = (self.version, self.created, self.n_items)
        if any(type(n) is not int or not 0 <= n <= MAX_VERSION for n in numbers) or self.version < 1:
            raise BadContent(
                f"manifest with numbers {numbers!r:.80}: expected whole ones from 0, a version from 1"
            )
        if not _CLIENT.fullmatch(self.min_client_version):
            raise BadContent(f"min_client_version {self.min_client_version!r:.40}: expected e.g. '0.1.0'")
        missing = set(REQUIRED_FILES) - set(self.files)
        strange = [name for name in self.files if not _is_file(name)]
        if missing or strange:
            raise BadContent(f"manifest lacks files {sorted(missing)} or has strange ones {strange!r:.80}")
        later = [v for v in self.deltas if not 1 <= v < self.version]
        if later:
            raise BadContent(
                f"manifest of version {self.version} builds on {later!r:.80}: expected earlier ones"
            )
        self._check_tensors()

    def _check_tensors(self) -> None:
        """Tensors lie in the files, so what a delta may unpack to is bounded by the size of a download."""
        strange = [name for name in self.tensors if not _TENSOR.fullmatch(name)]
        if strange:
            raise BadContent(
                f"manifest has strange tensors {strange!r:.80}: expected model/... and items/..."
            )
        for part, file in (("model/", MODEL_FILE), ("items/", ITEMS_FILE)):
            size = sum(entry.nbytes for name, entry in self.tensors.items() if name.startswith(part))
            if size > self.files[file].size:
                raise BadContent(
                    f"manifest has tensors of {size} bytes in {file} of {self.files[file].size}: expected less"
                )

    def payload(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        plain["deltas"] = {str(version): entry for version, entry in plain["deltas"].items()}
        return plain

    def to_bytes(self) -> bytes:
        """Canonical JSON: the content of the target."""
        return canonical(self.payload())

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The manifest of `to_bytes`; that these are the signed bytes is for the caller to know.

        Raises:
            BadContent: it is not a valid one.
        """
        if len(content) > MAX_MANIFEST_BYTES:
            raise BadContent(f"manifest of {len(content)} bytes: expected at most {MAX_MANIFEST_BYTES}")
        return cls.from_payload(parse_json(content))

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """The manifest of plain values.

        Raises:
            BadContent: fields are missing, unknown or out of range.
        """
        plain = dict(payload)
        try:
            plain["files"] = {name: FileEntry(**entry) for name, entry in plain["files"].items()}
            plain["tensors"] = {
                name: TensorEntry(**entry | {"shape": tuple(entry["shape"])})
                for name, entry in plain["tensors"].items()
            }
            deltas = {int(version): FileEntry(**entry) for version, entry in plain["deltas"].items()}
            if [str(version) for version in deltas] != list(plain["deltas"]):
                raise ValueError("versions of deltas")
            plain["deltas"] = deltas
            if not isinstance(plain["privacy"], dict) or not isinstance(plain["model_kind"], str):
                raise ValueError("privacy or model_kind")
            return cls(**plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadContent(
                f"not a valid manifest ({error!s:.80}): update the client, or fetch it again"
            ) from error


def check_for_device(manifest: Manifest, population: str, version: int, client_version: str) -> None:
    """Whether a manifest that is genuine is one for this device.

    Args:
        manifest: whose hash was signed.
        population: of this device.
        version: that was signed as being in use.
        client_version: of the SDK.

    Raises:
        WrongPopulation: it is for others.
        BadContent: it is of another version.
        ClientTooOld: it needs a newer client.
    """
    if manifest.population != population:
        raise WrongPopulation(
            f"manifest for population {manifest.population!r:.80}: this device is of {population!r}"
        )
    if manifest.version != version:
        raise BadContent(f"asked for model version {version}, got {manifest.version}: fetch it again")
    if _parts(client_version) < _parts(manifest.min_client_version):
        raise ClientTooOld(
            f"model version {manifest.version} needs client {manifest.min_client_version}, this is "
            f"{client_version}: update the app"
        )


def check_population(name: str) -> str:
    """The name of a population, when it can be one.

    Raises:
        BadContent: it cannot.
    """
    if not isinstance(name, str) or not _POPULATION.fullmatch(name):
        raise BadContent(
            f"population {name!r:.80}: expected 1 to 63 small letters, digits and hyphens, e.g. 'movies-en'"
        )
    return name


def _is_file(name: str) -> bool:
    """A plain name, and none that the package itself uses."""
    return bool(_FILE.fullmatch(name)) and name != MANIFEST_FILE and not _DELTA.fullmatch(name)


def _parts(version: str) -> tuple[int, ...]:
    """1.2 equals 1.2.0; what follows the numbers ("rc1", "+local") does not count, and without numbers it is 0."""
    found = _CLIENT.match(version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    return (*numbers, *[0] * (4 - len(numbers)))
