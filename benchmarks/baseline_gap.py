"""Is a federation worse than its centralised baseline, or were both unlucky? Several seeds, equally many passes.

    python -m benchmarks.baseline_gap [--data FOLDER] [--sets ml-100k] [--models two-tower,bert4rec,gru4rec]
        [--seeds 4] [--passes 32] [--set federation.clip_norm=20.0]

`benchmarks.families` chooses a run's length on the validation item, so its two figures differ by luck twice. Here
both learn from the training part for the same number of passes (as many as its experiment allows) and are evaluated
on the validation item, with one seed after another; nothing is chosen and no test item is looked at. The interval is
Student's, over seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.families import Row, changed, run
from benchmarks.quality import EXPERIMENTS, paths
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, prepare

METRICS = ("full/ndcg@10", "full/recall@20")


def pair(config: Config, prepared: Prepared, passes: int | None, seed: int) -> tuple[Row, Row]:
    """Metrics of baseline and federation on the validation item."""
    split = replace(prepared.split, validation=None, test=prepared.split.validation)
    rate = config.federation.sampling_rate
    passes = passes or round(config.federation.rounds * rate)
    rules = {"seed": seed, "rounds": passes, "checkpoint_every": 10**6, "patience": None}
    baseline = fit_baseline(changed(config, federation=rules), split, features=prepared.catalog.features)
    rules["rounds"] = round(passes / rate)
    federated = run(changed(config, federation=rules), replace(prepared, split=split), 1)
    return baseline.report.as_dict()["metrics"]["all"] | {"passes": passes}, federated["metrics"]


def line(model: str, metric: str, pairs: list[tuple[Row, Row]]) -> str:
    """Means over seeds, and their relative difference with its 95 % interval."""
    baseline, federated = np.array([[row[metric]["value"] for row in both] for both in pairs]).T
    gap = 100 * (federated - baseline) / baseline.mean()
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
    spread = " / ".join(f"{100 * side.std(ddof=1) / side.mean():.0f} %" for side in (baseline, federated))
    cells = [
        model,
        str(pairs[0][0]["passes"]),
        metric,
        f"{baseline.mean():.4f}",
        f"{federated.mean():.4f}",
        f"{gap.mean():+.1f} ±{half:.1f} %",
        spread,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Federations beside their baselines, over seeds")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="ml-100k")
    parser.add_argument("--models", default="two-tower,bert4rec,gru4rec")
    parser.add_argument("--passes", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--set", action="append", default=[], help="override, such as federation.clip_norm=20.0"
    )
    options = parser.parse_args()
    for name in options.sets.split(","):
        print(f"### {name}, {options.seeds} seeds, validation item\n")
        print("| recommender | passes | metric | baseline | federated | difference | spread between seeds |")
        print("|---|---|---|---|---|---|---|")
        for model in options.models.split(","):
            overrides = [] if name == "movietweetings" else paths(options.data.resolve(), name)
            config = load_config((EXPERIMENTS / f"{name}-{model}.toml").resolve(), [*overrides, *options.set])
            prepared = prepare(config)
            pairs = [pair(config, prepared, options.passes, seed) for seed in range(options.seeds)]
            for metric in METRICS:
                print(line(model, metric, pairs), flush=True)


if __name__ == "__main__":
    main()
