"""The table recommender x engine: quality, seconds, bytes up and down per user and round.

    python -m benchmarks.engines [--engines in-process,flower,deployment] [--nodes 2]

Bundled MovieTweetings (5-core, leave-one-out), a fixed number of rounds, the same seed everywhere: quality must be
the same on every engine, seconds show what starting it and carrying the messages costs. Bytes are those of the
declared wire format: one user's dense float32 vector up, and down the shared state that the round leaves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from fedrec_server.operations.deployment import run_deployment
from fedrec_simulations.engines.flower import run_flower
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder

METRICS = ("sampled/hr@10", "sampled/ndcg@10", "full/ndcg@10")
MODELS = {
    "popularity": ({"kind": "popularity"}, 1),
    "item_knn": (
        {"kind": "item_knn", "neighbours": 200, "activity_exponent": 0.3, "scoring_half_life": 3.0},
        1,
    ),
    "ease": ({"kind": "ease", "reg": 150.0, "activity_exponent": 0.4, "scoring_half_life": 3.0}, 1),
    "ials": ({"kind": "ials", "embedding_size": 32, "scoring_half_life": 3.0}, 10),
    "mf": ({"kind": "mf", "embedding_size": 32}, 20),
}


def config_of(model: dict[str, object], rounds: int) -> Config:
    """One row's configuration: no validation part, so that every engine runs exactly `rounds` rounds."""
    return parse_config(
        {
            "data": {"core": 5},
            "split": {"validation": False},
            "model": model,
            "federation": {"rounds": rounds, "clip_norm": 5.0 if model["kind"] == "mf" else None},
            "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
        }
    )


def run(
    engine: str, config: Config, prepared: Prepared, nodes: int, folder: Path
) -> tuple[dict[str, float], float]:
    """Test metrics and wall seconds, start and stop of the engine included."""
    count = 1 if engine == "in-process" else nodes
    path = RunFolder.create(folder, config, prepared, count).path
    started = time.perf_counter()
    if engine == "in-process":
        outcome = run_in_process(path)
    else:
        outcome = (run_flower if engine == "flower" else run_deployment)(path, count)
    seconds = time.perf_counter() - started
    return {name: e["value"] for name, e in outcome.result["test"]["metrics"]["all"].items()}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--engines", default="in-process,flower,deployment")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--nodes", type=int, default=2)
    options = parser.parse_args()
    print(
        "model      engine         HR@10   NDCG@10 full NDCG rounds  seconds  up/user/round down/user/round"
    )
    with tempfile.TemporaryDirectory(prefix="fedrec-engines-") as scratch:
        for name in options.models.split(","):
            model, rounds = MODELS[name]
            config = config_of(model, rounds)
            prepared = prepare(config)
            for engine in options.engines.split(","):
                folder = Path(scratch) / name / engine
                metrics, seconds = run(engine, config, prepared, options.nodes, folder)
                record = RunFolder.open(folder).records[-1]
                up, down = (record[f"bytes_{way}_per_user"] / 1e3 for way in ("up", "down"))
                quality = " ".join(f"{metrics[key]:9.4f}" for key in METRICS)
                print(
                    f"{name:10} {engine:10} {quality} {rounds:6d} {seconds:8.1f} {up:11,.0f} kB {down:9,.0f} kB"
                )


if __name__ == "__main__":
    main()
