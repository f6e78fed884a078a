"""What a trained recommender becomes on a device: a serving model that gives the same scores without torch or scipy.

Matrix factorisation and GMF are the exception: there a user is folded in by Newton steps instead of sampled
    gradient descent, which is deterministic, faster and can be explained. MLP and NeuMF, whose score of every item
    is a network of its own, do not serve on a device. Out of scope: files and signatures (`fedrec.wire`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.updates import State
from fedrec.neural.item_features import FEATURES
from fedrec.neural.recommender import NeuralConfig
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Newton, Ridge
from fedrec.ranking.graph import GraphWeights
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.model import ServingModel
from fedrec.ranking.network import Network
from fedrec.ranking.popular import Popular, Selected
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import DenseWeights, SparseWeights, Weights
from fedrec.recommenders.closed_form.content import ContentConfig
from fedrec.recommenders.closed_form.ease import EaseConfig
from fedrec.recommenders.closed_form.ials import IalsConfig
from fedrec.recommenders.closed_form.item_graph import ItemGraphConfig
from fedrec.recommenders.closed_form.item_knn import ItemKnnConfig
from fedrec.recommenders.closed_form.popularity import PopularityConfig
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.collaborative.mult_vae import MultVaeConfig
from fedrec.recommenders.collaborative.ncf import NcfConfig
from fedrec.recommenders.collaborative.two_tower import TwoTowerConfig
from fedrec.recommenders.private.dp_ease import DpEaseConfig
from fedrec.recommenders.private.dp_ials import DpIalsConfig
from fedrec.recommenders.private.dp_item_graph import DpItemGraphConfig
from fedrec.recommenders.private.private_gram import PrivateGramConfig
from fedrec.recommenders.registry import ModelConfig
from fedrec.recommenders.sequence.bert4rec import Bert4RecConfig
from fedrec.recommenders.sequence.gru4rec import Gru4RecConfig
from fedrec.recommenders.sequence.sasrec import SasRecConfig
from fedrec.recommenders.sequence.text_sequence import TextSequenceConfig
from fedrec.recommenders.wrappers.scaffold import COMMON

#: Every item's score is a network of its own, or there is no single model.
NOT_SERVED = ("mlp", "neumf", "deepfm", "clustered")


def check_serves(config: ModelConfig) -> None:
    """Whether a recommender can serve on a device, before it is trained.

    Raises:
        ConfigError: it cannot yet.
    """
    if isinstance(config, NeuralConfig) and config.personal is not None:
        raise ConfigError("a model with a personal part cannot serve on a device yet: train it without one")
    if config.kind in NOT_SERVED:
        raise ConfigError(
            f"a model of kind {config.kind!r} cannot serve on a device: train one of another kind"
        )


def serving_model(config: ModelConfig, shared: State) -> ServingModel:
    """The serving model of a recommender's shared state.

    Raises:
        ConfigError: see `check_serves`.
    """
    check_serves(config)
    shared = {name: values for name, values in shared.items() if not name.startswith(COMMON)}
    match config:
        case PopularityConfig():
            return Popular(shared["count"])
        case EaseConfig():
            return ItemItem(DenseWeights(FloatTable(shared["weights"])), config.scoring_half_life)
        case ItemKnnConfig():
            edges = _by_history_item(shared["neighbour"], shared["similarity"])
            return ItemItem(edges, config.scoring_half_life)
        case ItemGraphConfig():
            return ItemItem(_graph(shared), config.scoring_half_life)
        case IalsConfig():
            ridge = Ridge(config.unobserved_weight, config.reg, config.reg_exponent, config.scoring_half_life)
            return Factors(FloatTable(shared["item_table"]), ridge)
        case MfConfig():
            pull = 1.0 / (config.learning_rate * config.fold_in_epochs)
            newton = Newton(config.loss, config.negatives, config.reg, pull)
            return Factors(FloatTable(shared["item_table"]), newton, shared["item_bias"].astype(np.float32))
        case DpIalsConfig():
            ridge = Ridge(config.unobserved_weight, config.user_reg, 1.0, config.scoring_half_life)
            inner = Factors(FloatTable(shared["item_table"]), replace(ridge, weighted_count=True))
            return Selected(inner, shared["selected"], shared["count"])
        case DpEaseConfig():
            weights = DenseWeights(FloatTable(shared["weights"]))
            return _private(config, weights, shared)
        case DpItemGraphConfig():
            return _private(config, _graph(shared), shared)
        case NcfConfig(kind="gmf"):
            pull = 1.0 / (config.device.rate(shared=False) * config.fold_in_epochs * config.local_epochs)
            newton = Newton("bce", config.negatives, config.reg, pull)
            # w · (p ∘ q) is p · (w ∘ q).
            weighted = FloatTable(shared["gmf/item"] * shared["gmf/weight"])
            return Factors(weighted, newton, shared["item_bias"].astype(np.float32))
        case SasRecConfig() | Bert4RecConfig():
            settings = {"blocks": config.blocks, "heads": config.heads}
            return _sequence(config.kind, config.max_length, settings, shared)
        case Gru4RecConfig():
            return _sequence(config.kind, config.max_length, {"layers": config.layers}, shared)
        case TwoTowerConfig():
            items = shared["item_table"]
            if config.features:
                items = items + shared[FEATURES] @ shared["features"]
            return _sequence(config.kind, config.max_length, {}, shared | {"item_table": items})
        case TextSequenceConfig():
            adapted = shared["projection"] + shared["adapter/a"] @ shared["adapter/b"]
            items = shared[FEATURES] @ adapted * np.exp(shared["temperature"])
            settings = {"heads": config.heads}
            return _sequence(
                f"text_{config.head}", config.max_length, settings, shared | {"item_table": items}
            )
        case MultVaeConfig():
            network = {
                name: shared[name] for name in shared if name.split("/")[0] in ("read_bias", "latent", "back")
            }
            read, write = FloatTable(shared["read"]), FloatTable(shared["write"])
            settings = {"max_length": config.max_history}
            return Network("mult_vae", settings, network, write, shared["item_bias"], read)
        case ContentConfig():
            asked = {"half_life": config.scoring_half_life, "max_length": 1 << 30}
            return Network("content", asked, {"map": shared["map"]}, FloatTable(shared[FEATURES]))
    raise AssertionError(f"{config.kind} is neither served nor refused")


def _sequence(encoder: str, max_length: int, settings: dict[str, int], shared: State) -> Network:
    """A network that reads and scores one table."""
    tables = ("item_table", "item_bias", FEATURES, "features", "projection", "temperature", "review")
    weights = {
        name: values
        for name, values in shared.items()
        if name not in tables and not name.startswith("adapter/")
    }
    table, bias = FloatTable(shared["item_table"]), shared.get("item_bias")
    return Network(encoder, settings | {"max_length": max_length}, weights, table, bias)


def _private(config: PrivateGramConfig, weights: Weights, shared: State) -> Selected:
    popular = np.maximum(shared["count"][shared["selected"]], 0.0)
    base = config.popularity_weight * popular / max(float(popular.max(initial=0.0)), 1e-9)
    inner = ItemItem(weights, config.scoring_half_life, base.astype(np.float32) if base.any() else None)
    return Selected(inner, shared["selected"], shared["count"])


def _graph(shared: State) -> GraphWeights:
    return GraphWeights(_by_history_item(shared["neighbour"], shared["edge"]), FloatTable(shared["vector"]))


def _by_history_item(neighbour: NDArray[np.int32], strength: NDArray[np.float32]) -> SparseWeights:
    """Training keeps, per scored item, the items that speak for it; serving looks from the history's side."""
    n_items, k = neighbour.shape
    scored = np.repeat(np.arange(n_items, dtype=np.int32), k)
    speaks = neighbour.reshape(-1).astype(np.int64)
    order = np.lexsort((scored, speaks))
    indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(speaks, minlength=n_items), out=indptr[1:])
    return SparseWeights(indptr, scored[order], strength.reshape(-1).astype(np.float32)[order])
