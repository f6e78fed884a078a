"""Texts as encoders see them, and each distinct one encoded once.

Letters: N texts, F width. Out of scope: what encodes (`encoders`, `pretrained`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from fedrec.core.interactions import FloatArray


def clean(text: str) -> str:
    """The text as encoders see it: composed characters (NFC), one space between words, nothing unprintable."""
    # A lone surrogate, as broken files have them, has no UTF-8 form.
    whole = text.encode("utf-8", "replace").decode("utf-8")
    printable = (c if c.isprintable() else " " for c in unicodedata.normalize("NFC", whole))
    return " ".join("".join(printable).split())


def encode_distinct(
    texts: Sequence[str], width: int, encode: Callable[[list[str]], FloatArray]
) -> FloatArray:
    """[N, width] unit rows: each distinct text is encoded once, blank ones never.

    Args:
        texts: as given by a user.
        width: F.
        encode: from n cleaned, different, non-empty texts to [n, F] of any norm.
    """
    cleaned = [clean(text) for text in texts]
    place = {text: row for row, text in enumerate(dict.fromkeys(t for t in cleaned if t))}
    # The last row is the one of blank texts.
    rows = np.zeros((len(place) + 1, width), dtype=np.float32)
    if place:
        rows[:-1] = unit_rows(encode(list(place)))
    return rows[[place.get(text, -1) for text in cleaned]]


def unit_rows(vectors: FloatArray) -> FloatArray:
    """[N, F] rows of norm 1; rows of zeros stay."""
    exact = vectors.astype(np.float64)
    # Scaled first, so that squares of tiny numbers do not vanish.
    exact /= np.maximum(np.abs(exact).max(axis=1, initial=0.0, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.where(norms > 0, norms, 1.0), dtype=np.float32)
