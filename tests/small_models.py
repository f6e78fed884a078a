"""A small one of every kind of model, and of what may be laid around one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrec.core.recommender import RecommenderConfig
from fedrec.recommenders.registry import RECOMMENDERS, build, parse

WIDTH = 5
FEATURES = np.random.default_rng(4).normal(size=(60, WIDTH)).astype(np.float32)
#: Plain means: an adaptive rule makes a step of what rounding to integers leaves of a zero.
SGD = {"server": {"name": "sgd", "learning_rate": 1.0}}
FAST = {"device": {"learning_rate": 0.3}}
SEQUENCE = {"embedding_size": 8, "max_length": 7} | SGD
FEATURED = {"features": WIDTH}
MODELS: dict[str, dict[str, Any]] = {kind: dict(made.small) for kind, made in RECOMMENDERS.builtin()}
AROUND: dict[str, dict[str, Any]] = {
    "sampled softmax": {"kind": "sasrec", "loss": "sampled", "negatives": 9} | SEQUENCE,
    "LSTM of texts": {"kind": "text_sequence", "head": "lstm", "rank": 2} | SEQUENCE | FEATURED,
    "FedPer": {"kind": "sasrec", "personal": {"level": "fedper"}} | SEQUENCE,
    "FedRep": {"kind": "gru4rec", "personal": {"level": "fedrep"}} | SEQUENCE,
    "FedRecon": {"kind": "gmf", "personal": {"level": "fedrecon"}, "embedding_size": 4} | FAST | SGD,
    "mixed": {"kind": "two_tower", "personal": {"level": "mixed"}} | SEQUENCE,
    "SCAFFOLD": {"kind": "sasrec", "scaffold": {"items": 60, "users": 120}, "local_epochs": 2} | SEQUENCE,
    "one MF per cluster": {
        "kind": "clustered",
        "clusters": 2,
        "cluster_rounds": 2,
        "base": {"kind": "mf"} | SGD,
    }
    | FEATURED,
}
ALL = {kind: {"kind": kind} | values for kind, values in MODELS.items()} | AROUND


#: Rounds that some need to learn anything.
LONGER = {"one MF per cluster": 4}


def model_of(name: str) -> RecommenderConfig:
    return parse(ALL[name])


def features_of(name: str) -> np.ndarray | None:
    """Public features of 60 items, where the model reads any."""
    return FEATURES if build(model_of(name)).needs.features else None
