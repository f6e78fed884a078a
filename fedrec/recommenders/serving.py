"""What a trained recommender becomes on a device: each states its own form (`Recommender.serving`).

Out of scope: files and signatures (`fedrec.wire`).
"""

from __future__ import annotations

from fedrec.core.errors import ConfigError
from fedrec.core.recommender import Recommender
from fedrec.core.updates import State
from fedrec.ranking.model import ServingModel


def check_serves(recommender: Recommender) -> None:
    """Whether a recommender can serve on a device, before it is trained.

    Raises:
        ConfigError: it cannot.
    """
    refusal = recommender.serving_refusal()
    if refusal is not None:
        raise ConfigError(refusal)


def serving_form(recommender: Recommender, shared: State) -> ServingModel:
    """The serving model of a recommender's shared state.

    Raises:
        ConfigError: it cannot serve (`check_serves`), or gives something that is not a serving model.
    """
    check_serves(recommender)
    model = recommender.serving(shared)
    if not isinstance(model, ServingModel):
        raise ConfigError(
            f"{type(recommender).__name__}.serving gave a {type(model).__name__}: expected a model of fedrec.ranking"
        )
    return model
