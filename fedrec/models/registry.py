"""Names of recommenders and how a configuration becomes one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from fedrec.models.base import Recommender
from fedrec.models.dp_ease import DpEase, DpEaseConfig
from fedrec.models.dp_ials import DpIals, DpIalsConfig
from fedrec.models.ease import Ease, EaseConfig
from fedrec.models.ials import Ials, IalsConfig
from fedrec.models.item_knn import ItemKnn, ItemKnnConfig
from fedrec.models.mf import MatrixFactorisation, MfConfig
from fedrec.models.popularity import Popularity, PopularityConfig

ModelConfig = Annotated[
    PopularityConfig | ItemKnnConfig | EaseConfig | IalsConfig | MfConfig | DpEaseConfig | DpIalsConfig,
    Field(discriminator="kind"),
]

#: The values of `kind`.
KINDS = tuple(model.kind for model in (Popularity, ItemKnn, Ease, Ials, MatrixFactorisation, DpEase, DpIals))


def build(config: ModelConfig) -> Recommender:
    """The recommender of a configuration."""
    match config:
        case PopularityConfig():
            return Popularity(config)
        case ItemKnnConfig():
            return ItemKnn(config)
        case EaseConfig():
            return Ease(config)
        case IalsConfig():
            return Ials(config)
        case MfConfig():
            return MatrixFactorisation(config)
        case DpEaseConfig():
            return DpEase(config)
        case DpIalsConfig():
            return DpIals(config)


def parse(values: dict[str, Any]) -> ModelConfig:
    """A configuration from plain values; raises pydantic's ValidationError with all problems."""
    return TypeAdapter[ModelConfig](ModelConfig).validate_python(values)
