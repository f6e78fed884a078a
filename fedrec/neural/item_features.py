"""Public features of the items: a constant of the shared state that is broadcast and never part of an update.

Letters: I items, F width, K users, S rows that a user touches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedrec.core.errors import ConfigError
from fedrec.core.recommender import Scores
from fedrec.core.updates import State

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Touched

#: Name in the shared state.
FEATURES = "item_features"


def required_features(kind: str, features: Scores | None, n_items: int, width: int) -> Scores:
    """[I, F] float32 features as a model was configured for them.

    Raises:
        ConfigError: there are none, or of another shape.
    """
    if features is None or features.shape != (n_items, width):
        given = "none" if features is None else f"{features.shape[0]} x {features.shape[1]}"
        raise ConfigError(
            f"model {kind!r} was given item features: {given}: expected {n_items} x {width}; set data.features, and "
            "model.features to their width"
        )
    return features.astype(np.float32)


def row_features(shared: State, touched: Touched | None, n_users: int) -> Tensor:
    """[K, S, F] public vectors of the rows that each user touches; a view of all of them where that is all."""
    import torch

    if touched is None:
        everything = torch.from_numpy(shared[FEATURES])
        return everything.expand(n_users, *everything.shape)
    rows, real = touched.padded()
    # Rows that are only padding may lie where no one has looked.
    picked = np.zeros((*rows.shape, shared[FEATURES].shape[1]), dtype=np.float32)
    picked[real] = shared[FEATURES][rows[real]]
    return torch.from_numpy(picked)
