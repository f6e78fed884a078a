"""Users trained per CPU-second for each neural family: batched beside one by one.

    python -m benchmarks.neural_speed [--users 96] [--repeats 3]

Histories of the shape of MovieLens 1M; one round of federated SGD with d = 64 and 50 events, clipped to norm 1:
sampling, training, clipping and summing are included. "One by one" is the same code with one user at a time, as a
device runs it. GMF, MLP and NeuMF make a step for every 64 interactions, of the whole history.
CPU seconds are user plus system time of the process, one thread; the best of the repeats. On AMD processors
`OPENBLAS_CORETYPE=SKYLAKEX` lets numpy use the widest registers.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.workload import N_ITEMS, SEED, cohort
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.recommenders.registry import build, parse
from fedrec.rounds.chain import train_users

WIDTH = 64
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {"kind": "sasrec"},
    "SASRec, sampled softmax": {"kind": "sasrec", "loss": "sampled"},
    "BERT4Rec": {"kind": "bert4rec"},
    "GRU4Rec": {"kind": "gru4rec"},
    "two towers": {"kind": "two_tower"},
    "two towers, features": {"kind": "two_tower", "features": WIDTH},
    "text, attention": {"kind": "text_sequence", "features": WIDTH},
    "text, LSTM": {"kind": "text_sequence", "features": WIDTH, "head": "lstm"},
    "Mult-VAE": {"kind": "mult_vae"},
    "DeepFM, clicks": {
        "kind": "deepfm",
        "target": "click",
        "embedding_size": 32,
        "features": WIDTH,
        "context": False,
    },
    "GMF": {"kind": "gmf", "embedding_size": WIDTH},
    "MLP": {"kind": "mlp", "embedding_size": WIDTH, "device": {"learning_rate": 0.01}},
    "NeuMF": {"kind": "neumf", "embedding_size": WIDTH, "device": {"learning_rate": 0.01}},
}


def users_per_cpu_second(model: Recommender, batch: UserBatch, repeats: int) -> float:
    """Best of the repeats, after one round that is not counted."""
    features = np.random.default_rng(SEED).normal(size=(N_ITEMS, WIDTH)).astype(np.float32)
    shared, local = model.init_shared(N_ITEMS, SEED, features), model.init_local(batch.user, SEED)
    best = np.inf
    for number in range(repeats + 1):
        started = time.process_time()
        train_users(model, shared, local, batch, RoundSeed(SEED, number + 1), 1.0, N_ITEMS)
        best = min(best, time.process_time() - started) if number else np.inf
    return len(batch) / best


def main() -> None:
    parser = argparse.ArgumentParser(description="Users per CPU-second of each neural family")
    parser.add_argument("--users", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| family | batched | one by one | ratio |\n|---|---|---|---|")
    for name, values in MODELS.items():
        batched, single = build(parse(values)), build(parse(values))
        vars(single)["chunk_users"] = 1
        both = [users_per_cpu_second(m, cohort(options.users), options.repeats) for m in (batched, single)]
        print(f"| {name} | {both[0]:,.0f} | {both[1]:,.0f} | {both[0] / both[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
