"""One model for everyone, or one per cluster of users?

    python -m benchmarks.clusters [--data FOLDER] [--sets ml-100k,movietweetings] [--models item-graph,ease]

Users are clustered by the categories of what they have, by secure k-means; each cluster learns from the others' sums
at the weight `pooling`. Nothing is chosen: every weight is shown. Test items are looked at once, differences are
paired by user. About two CPU minutes a set.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.quality import EXPERIMENTS, paths
from benchmarks.variants import Variant, compare, table
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, prepare

VARIANTS = (
    Variant("one model", [{"clusters": 1, "pooling": 1.0}]),
    *(
        Variant(f"{k} clusters, pooling {rho:g}", [{"clusters": k, "pooling": rho}])
        for k in (2, 4, 8)
        for rho in (0.0, 0.3, 0.7)
    ),
)


def load(name: str, data: Path | None) -> tuple[Config, Prepared]:
    """An experiment whose model becomes the base of clusters by category."""
    dataset = name.removesuffix("-ease").removesuffix("-item-graph")
    overrides = [] if data is None or dataset == "movietweetings" else paths(data.resolve(), dataset)
    path = (EXPERIMENTS / f"{name}.toml").resolve()
    config = load_config(path, [*overrides, 'data.features={parts=["categories"]}'])
    prepared = prepare(config)
    features = prepared.catalog.features
    if features is None:
        raise SystemExit(f"{name}: the catalogue has no categories; give the original files by --data")
    plain: dict[str, Any] = config.model_dump(mode="json")
    plain["model"] = {"kind": "clustered", "features": features.shape[1], "base": plain["model"]}
    return Config.model_validate(plain), prepared


def main() -> None:
    parser = argparse.ArgumentParser(description="One model, or one per cluster of users")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="ml-100k,movietweetings")
    parser.add_argument("--models", default="item-graph,ease")
    options = parser.parse_args()
    for dataset in options.sets.split(","):
        if dataset != "movietweetings" and options.data is None:
            continue
        for model in options.models.split(","):
            config, prepared = load(f"{dataset}-{model}", options.data)
            results = compare(config, prepared, VARIANTS, lambda line: print(line, flush=True))
            print(f"### {dataset}, {model}\n\n{table(results)}\n", flush=True)


if __name__ == "__main__":
    main()
