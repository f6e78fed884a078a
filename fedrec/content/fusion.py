"""Late fusion: several views of the same items (text, image, anything) side by side in one feature matrix.

Each view is standardised by itself, so that none speaks louder because its numbers are larger, and its weight says
how much it counts in a scalar product. An item of which a view knows nothing has zeros there, and a column of its own
says so: after standardisation zero means "average", and the column tells that from "unknown".

Letters: I items, F width of a view.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedrec.content._texts import unit_rows
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import FloatArray


def late_fusion(parts: Mapping[str, FloatArray], weights: Mapping[str, float] | None = None) -> FloatArray:
    """[I, Σ F + views] the views in the order of `parts`, each scaled, and then one column each: 1 where known.

    A row of a view: columns standardised over the known items, the row brought to norm 1, times the square root of
    the weight; so the scalar product of two items that are fully known is the weighted sum of the views' cosines,
    plus the number of views.

    Args:
        parts: name to [I, F]; a row of zeros means: nothing is known of this item.
        weights: name to a weight above 0; None: 1 each.

    Raises:
        ConfigError: no parts, or the weights name other parts or are not positive.
        DataError: the parts are of different numbers of items, or hold NaN or infinity.
    """
    weights = dict.fromkeys(parts, 1.0) if weights is None else weights
    if not parts or set(weights) != set(parts):
        raise ConfigError(f"weights for {sorted(weights)}: expected one for each of {sorted(parts)}")
    if not all(0 < w < np.inf for w in weights.values()):
        raise ConfigError(f"weights {dict(weights)}: expected numbers above 0; leave a part out instead of 0")
    if any(part.ndim != 2 for part in parts.values()) or len({len(part) for part in parts.values()}) != 1:
        shapes = {name: part.shape for name, part in parts.items()}
        raise DataError(f"parts of shapes {shapes}: expected one row per item in each; align them first")
    broken = [name for name, part in parts.items() if not np.isfinite(part).all()]
    if broken:
        raise DataError(f"part {broken[0]!r} holds NaN or infinity: give zeros for unknown items")
    views = [np.sqrt(weights[name]) * _standardised(part) for name, part in parts.items()]
    known = [np.any(part, axis=1, keepdims=True) for part in parts.values()]
    return np.hstack([*views, *known]).astype(np.float32)


def _standardised(part: FloatArray) -> FloatArray:
    """[I, F] mean 0 and deviation 1 in each column over the known rows, then rows of norm 1; unknown rows 0."""
    known = np.any(part, axis=1)
    out = np.zeros_like(part, dtype=np.float32)
    if known.any():
        rows = part[known].astype(np.float64)
        centred = rows - rows.mean(axis=0)
        deviation = centred.std(axis=0)
        # A column that differs by rounding alone says nothing.
        useful = deviation > 1e-6 * np.abs(rows).max(axis=0)
        scaled = np.where(useful, centred / np.where(useful, deviation, 1.0), 0.0)
        out[known] = unit_rows(scaled.astype(np.float32))
    return out
