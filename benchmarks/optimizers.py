"""Optimisers compared at equal rounds: on the server, on the device, and against the drift of local steps.

    python -m benchmarks.optimizers --data FOLDER [--rounds 280]

A small SASRec (d = 16, one block, the whole catalogue in the loss) on ML-100K, 66 users a round, no bound on updates.
Each optimiser's learning rate is chosen on the validation item among a few; all make the same number of rounds and
every seen figure is on the test item. With one local step FedProx and SCAFFOLD have nothing to correct, so there is a
second table with four passes on the device. About ten CPU minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.variants import Variant, changed, compare, load, table

Model = dict[str, Any]


def server(name: str, *rates: float, **more: Any) -> list[Model]:
    """Candidates for the server's optimiser."""
    return [{"server": {"name": name, "learning_rate": rate, **more}} for rate in rates]


SERVERS = (
    Variant("FedAdam", server("adam", 0.001, 0.003)),
    Variant("FedAvg", server("sgd", 0.03, 0.1, 0.3)),
    Variant("FedAvgM", server("momentum", 0.01, 0.03, 0.1)),
    Variant("FedAdagrad", server("adagrad", 0.003, 0.01, 0.1, momentum=0.0)),
    Variant("FedYogi", server("yogi", 0.001, 0.003)),
    Variant(
        "FedAdam, warm-up and cosine",
        server("adam", 0.003, 0.006, schedule={"kind": "cosine", "warm_up": 14, "horizon": 280}),
    ),
)


def device(name: str, *rates: float, passes: int = 4, **more: Any) -> list[Model]:
    """Candidates for the device's optimiser, `passes` steps a round."""
    return [
        {"local_epochs": passes, "device": {"name": name, "learning_rate": rate, **more}} for rate in rates
    ]


def devices(n_items: int, n_users: int) -> tuple[Variant, ...]:
    """Several passes on the device; the server stays FedAdam."""
    control = {"scaffold": {"items": n_items, "users": n_users}}
    return (
        Variant("one step (FedSGD)", [{}]),
        Variant("SGD", device("sgd", 0.3, 1.0)),
        Variant("momentum", device("momentum", 0.1, 0.3)),
        Variant("AdaGrad", device("adagrad", 0.003, 0.01)),
        Variant("RMSProp", device("rmsprop", 0.001, 0.003)),
        Variant("Adam", device("adam", 0.001, 0.003)),
        Variant("SGD, FedProx", device("sgd", 0.3, 1.0, proximal=0.1)),
        Variant("SGD, SCAFFOLD", [m | control for m in device("sgd", 0.3, 1.0)]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Optimisers compared at equal rounds")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=280)
    parser.add_argument("--tables", default="servers,devices")
    options = parser.parse_args()
    config, prepared = load("ml-100k-sasrec", options.data)
    rules = {"rounds": options.rounds, "evaluate_every": options.rounds, "clip_norm": None, "patience": None}
    small = {"embedding_size": 16, "blocks": 1, **server("adam", 0.003)[0]}
    config = changed(config, small, rules)
    chosen = {
        "servers": SERVERS,
        "devices": devices(prepared.split.train.n_items, prepared.split.train.n_users),
    }
    for name in options.tables.split(","):
        print(f"\n### {name}, {options.rounds} rounds\n", flush=True)
        results = compare(config, prepared, chosen[name], lambda line: print(f"  {line}", flush=True))
        print(f"\n{table(results)}", flush=True)


if __name__ == "__main__":
    main()
