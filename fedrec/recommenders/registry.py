"""Names of recommenders and how a configuration becomes one."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter

from fedrec.core.errors import ConfigError
from fedrec.core.recommender import Recommender
from fedrec.neural.recommender import NeuralRecommender
from fedrec.recommenders.closed_form.content import Content, ContentConfig
from fedrec.recommenders.closed_form.ease import Ease, EaseConfig
from fedrec.recommenders.closed_form.ials import Ials, IalsConfig
from fedrec.recommenders.closed_form.item_graph import ItemGraph, ItemGraphConfig
from fedrec.recommenders.closed_form.item_knn import ItemKnn, ItemKnnConfig
from fedrec.recommenders.closed_form.popularity import Popularity, PopularityConfig
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig
from fedrec.recommenders.collaborative.mult_vae import MultVae, MultVaeConfig
from fedrec.recommenders.collaborative.ncf import Ncf, NcfConfig
from fedrec.recommenders.collaborative.two_tower import TwoTower, TwoTowerConfig
from fedrec.recommenders.ctr.deepfm import DeepFm, DeepFmConfig
from fedrec.recommenders.private.dp_ease import DpEase, DpEaseConfig
from fedrec.recommenders.private.dp_ials import DpIals, DpIalsConfig
from fedrec.recommenders.private.dp_item_graph import DpItemGraph, DpItemGraphConfig
from fedrec.recommenders.sequence.bert4rec import Bert4Rec, Bert4RecConfig
from fedrec.recommenders.sequence.gru4rec import Gru4Rec, Gru4RecConfig
from fedrec.recommenders.sequence.sasrec import SasRec, SasRecConfig
from fedrec.recommenders.sequence.text_sequence import TextSequence, TextSequenceConfig
from fedrec.recommenders.wrappers.clustered import Clustered, ClusteredConfig
from fedrec.recommenders.wrappers.personal import Personalised
from fedrec.recommenders.wrappers.scaffold import Scaffolded

ModelConfig = Annotated[
    PopularityConfig
    | ItemKnnConfig
    | EaseConfig
    | IalsConfig
    | MfConfig
    | DpEaseConfig
    | DpIalsConfig
    | ItemGraphConfig
    | DpItemGraphConfig
    | ClusteredConfig
    | SasRecConfig
    | NcfConfig
    | Bert4RecConfig
    | Gru4RecConfig
    | TwoTowerConfig
    | MultVaeConfig
    | ContentConfig
    | TextSequenceConfig
    | DeepFmConfig,
    Field(discriminator="kind"),
]

#: The values of `kind`.
KINDS: tuple[str, ...] = tuple(
    kind
    for config in get_args(get_args(ModelConfig)[0])
    for kind in get_args(config.model_fields["kind"].annotation)
)


def build(config: ModelConfig) -> Recommender:
    """The recommender of a configuration, with what its configuration lays around it.

    Raises:
        ConfigError: a model that cannot bear what is laid around it.
    """
    model = _plain(config)
    if not isinstance(model, NeuralRecommender):
        return model
    personal, scaffold = model.training.personal, model.training.scaffold
    if personal is not None and scaffold is not None:
        raise ConfigError("model.personal and model.scaffold exclude each other: give one of them")
    if personal is not None:
        return Personalised(model, personal)
    return model if scaffold is None else Scaffolded(model, scaffold)


def _plain(config: ModelConfig) -> Recommender:
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
        case ItemGraphConfig():
            return ItemGraph(config)
        case DpItemGraphConfig():
            return DpItemGraph(config)
        case ClusteredConfig():
            return Clustered(config, _plain(config.base))
        case MultVaeConfig():
            return MultVae(config)
        case Gru4RecConfig():
            return Gru4Rec(config)
        case TwoTowerConfig():
            return TwoTower(config)
        case Bert4RecConfig():
            return Bert4Rec(config)
        case NcfConfig():
            return Ncf(config)
        case SasRecConfig():
            return SasRec(config)
        case ContentConfig():
            return Content(config)
        case TextSequenceConfig():
            return TextSequence(config)
        case DeepFmConfig():
            return DeepFm(config)


def parse(values: dict[str, Any]) -> ModelConfig:
    """A configuration from plain values; raises pydantic's ValidationError with all problems."""
    return TypeAdapter[ModelConfig](ModelConfig).validate_python(values)
