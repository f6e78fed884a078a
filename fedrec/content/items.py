"""From a catalogue to item features: the texts, their vectors, fewer dimensions, and a cache.

Everything here is made from the public catalogue alone, so whoever has the catalogue has the features; no
interaction is looked at, and no privacy is spent.

Letters: I items, F width of the vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrec.content._texts import unit_rows
from fedrec.content.encoders import Encoder
from fedrec.core.errors import ConfigError, RunError
from fedrec.core.files import PUBLIC, read_arrays, write_arrays
from fedrec.core.interactions import Catalog, FloatArray

FIELDS = ("title", "categories", "text")
SEPARATOR = " | "


def item_texts(catalog: Catalog, fields: Sequence[str] = FIELDS) -> list[str]:
    """One text per item, as "Alien (1979) | Horror, Science Fiction"; what is unknown is left out.

    Raises:
        ConfigError: a field is not one of title, categories, text.
    """
    unknown = [name for name in fields if name not in FIELDS]
    if unknown or not fields:
        raise ConfigError(f"fields of an item's text {tuple(fields)}: expected some of {', '.join(FIELDS)}")
    columns = {
        "title": catalog.titles.tolist(),
        "categories": [", ".join(names) for names in catalog.categories],
        "text": ("",) * len(catalog) if catalog.text is None else catalog.text,
    }
    rows = zip(*(columns[name] for name in fields), strict=True)
    return [SEPARATOR.join(part for part in row if part.strip()) for row in rows]


@dataclass(frozen=True)
class Projection:
    """The directions in which a catalogue's vectors differ most (principal components, Hotelling 1933).

    Attributes:
        mean: [F] of the known vectors.
        components: [d, F] orthonormal rows, strongest first.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]

    @classmethod
    def fit(cls, vectors: FloatArray, dimensions: int) -> Projection:
        """The components of the rows that are not zero.

        Raises:
            ConfigError: there are fewer directions than asked for.
        """
        known = vectors[vectors.any(axis=1)].astype(np.float64)
        most = min(vectors.shape[1], max(len(known) - 1, 0))
        if not 1 <= dimensions <= most:
            raise ConfigError(
                f"dimensions={dimensions}: expected 1 to {most}, what {len(known)} items with a text of width "
                f"{vectors.shape[1]} allow"
            )
        mean = known.mean(axis=0)
        _, directions = np.linalg.eigh((known - mean).T @ (known - mean))
        components = np.asarray(directions[:, ::-1][:, :dimensions].T)
        # An eigenvector has no sign of its own: the largest entry is made positive.
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
        signs: NDArray[np.float64] = np.where(largest < 0, -1.0, 1.0)
        return cls(np.asarray(mean), components * signs)

    def apply(self, vectors: FloatArray) -> FloatArray:
        """[N, d] rows of norm 1; rows of zeros stay."""
        reduced = (vectors.astype(np.float64) - self.mean) @ self.components.T
        return unit_rows(np.where(np.any(vectors, axis=1, keepdims=True), reduced, 0.0).astype(np.float32))


def encode_catalog(
    catalog: Catalog,
    encoder: Encoder,
    dimensions: int | None = None,
    cache: Path | None = None,
    fields: Sequence[str] = FIELDS,
) -> Catalog:
    """The catalogue with `features` [I, F] made of its texts.

    Args:
        catalog: what is publicly known; features it has already are replaced.
        encoder: of `fedrec.content.encoders.load_encoder`.
        dimensions: width to reduce to by principal components of this catalogue; None: the encoder's own.
        cache: folder to keep the vectors in, one file per catalogue and encoder.
        fields: what an item's text is made of.

    Raises:
        ConfigError: a field or the dimensions do not fit.
    """
    vectors = _cached(item_texts(catalog, fields), encoder, cache)
    if dimensions is not None:
        vectors = Projection.fit(vectors, dimensions).apply(vectors)
    return replace(catalog, features=vectors)


def _cached(texts: list[str], encoder: Encoder, cache: Path | None) -> FloatArray:
    """Vectors of the texts, from the cache where they are whole in there."""
    if cache is None:
        return encoder.encode(texts)
    path = cache / f"{encoder.name}-{_key(texts, encoder)}.safetensors"
    known = _read(path, (len(texts), encoder.dimensions))
    if known is not None:
        return known
    vectors = encoder.encode(texts)
    cache.mkdir(parents=True, exist_ok=True)
    write_arrays(path, {"vectors": vectors}, {"sha256": _sum(vectors)}, PUBLIC)
    return vectors


def _read(path: Path, shape: tuple[int, int]) -> FloatArray | None:
    """Vectors of a file of the cache; None if it is missing or not what was written."""
    try:
        arrays, header = read_arrays(path)
    except RunError:
        return None
    vectors = np.asarray(arrays.get("vectors", np.zeros(0)), dtype=np.float32)
    whole = vectors.shape == shape and header.get("sha256") == _sum(vectors)
    return vectors if whole else None


def _key(texts: list[str], encoder: Encoder) -> str:
    """Hash of everything the vectors depend on."""
    what = json.dumps([encoder.name, encoder.version, encoder.dimensions, texts])
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def _sum(vectors: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()
