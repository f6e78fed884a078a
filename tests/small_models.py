"""A small one of every kind of model, and of what may be laid around one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrec.recommenders.registry import ModelConfig, parse

WIDTH = 5
FEATURES = np.random.default_rng(4).normal(size=(60, WIDTH)).astype(np.float32)
#: Plain means: an adaptive rule makes a step of what rounding to integers leaves of a zero.
SGD = {"server": {"name": "sgd", "learning_rate": 1.0}}
FAST = {"device": {"learning_rate": 0.3}}
SEQUENCE = {"embedding_size": 8, "max_length": 7} | SGD
FEATURED = {"features": WIDTH}
MODELS: dict[str, dict[str, Any]] = {
    "popularity": {},
    "item_knn": {"neighbours": 6},
    "ease": {"reg": 5.0},
    "ials": {"embedding_size": 4},
    "mf": {"embedding_size": 4} | SGD,
    "dp_ease": {"top_items": 12},
    "dp_ials": {"top_items": 12, "embedding_size": 4},
    "item_graph": {"neighbours": 8, "embedding_size": 5},
    "dp_item_graph": {"top_items": 12, "neighbours": 4, "embedding_size": 4},
    "clustered": {"clusters": 2, "cluster_rounds": 2, "base": {"kind": "ease", "reg": 5.0}} | FEATURED,
    "sasrec": SEQUENCE,
    "gru4rec": SEQUENCE,
    "bert4rec": SEQUENCE,
    "two_tower": SEQUENCE | FEATURED,
    "text_sequence": SEQUENCE | FEATURED | {"rank": 2},
    "gmf": {"embedding_size": 4} | FAST | SGD,
    "mlp": {"embedding_size": 4, "layers": (6,)} | SGD,
    "neumf": {"embedding_size": 4, "layers": (6,)} | SGD,
    "mult_vae": {"embedding_size": 4, "hidden_size": 8} | SGD,
    "content": FEATURED,
    "deepfm": {"embedding_size": 4, "layers": (6,)} | FEATURED | SGD,
}
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


def model_of(name: str) -> ModelConfig:
    return parse(ALL[name])
