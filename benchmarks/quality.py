"""Quality of every recommender on every data set at hand, federated beside its centralised baseline.

    python -m benchmarks.quality [--data FOLDER] [--sets movietweetings,ml-100k,ml-1m] [--models ...] [--no-recency]
        [--json FILE]

Runs `simulations/experiments/<set>-<model>.toml` in process: rounds are chosen on the validation item, the final fit
learns from it too, the test item is looked at once. `--data` is a folder with `ml-100k/` and `ml-1m/`, whose terms
forbid bundling; without it only the bundled MovieTweetings is run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from fedrec.core.errors import FedrecError
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import prepare
from fedrec_simulations.experiments.run_folder import RunFolder

EXPERIMENTS = Path(__file__).parent.parent / "simulations" / "experiments"
MODELS = ("popularity", "item-knn", "ease", "ials", "mf")
METRICS = ("sampled/hr@10", "sampled/ndcg@10", "full/ndcg@10", "full/recall@20")


def run(config: Config) -> dict[str, Any]:
    """One row: federated and baseline metrics with intervals, rounds and seconds."""
    prepared = prepare(config)
    with tempfile.TemporaryDirectory(prefix="fedrec-quality-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, prepared, 1)
        started = time.perf_counter()
        outcome = run_in_process(folder.path)
        seconds = time.perf_counter() - started
        bytes_up = folder.records[-1]["bytes_up_per_user"]
    baseline = fit_baseline(config, prepared.split, features=prepared.catalog.features)
    return {
        "federated": outcome.result["test"]["metrics"]["all"],
        "baseline": baseline.report.as_dict()["metrics"]["all"],
        "rounds": outcome.rounds,
        "epochs": baseline.epochs,
        "seconds": seconds,
        "bytes_up": bytes_up,
    }


def line(name: str, row: dict[str, Any]) -> str:
    """One Markdown row."""
    cells = []
    for metric in METRICS:
        federated, baseline = row["federated"][metric], row["baseline"][metric]
        half = (federated["high"] - federated["low"]) / 2
        cells.append(f"**{federated['value']:.3f}** ±{half:.3f} ({baseline['value']:.3f})")
    return f"| {name} | {' | '.join(cells)} | {row['rounds']} | {row['seconds']:.0f} | {row['bytes_up'] / 1e3:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of every recommender on every data set at hand")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="movietweetings,ml-100k,ml-1m")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument(
        "--no-recency", action="store_true", help="the same settings with every interaction alike"
    )
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    for name in options.sets.split(","):
        if name != "movietweetings" and options.data is None:
            print(f"\n{name}: not run; give --data FOLDER with {name}/ in its original files")
            continue
        print(f"\n### {name}: federated (centralised baseline)\n")
        print(
            "| model | sampled HR@10 | sampled NDCG@10 | full NDCG@10 | full Recall@20 | rounds | s | kB up |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for model in options.models.split(","):
            path = (EXPERIMENTS / f"{name}-{model}.toml").resolve()
            try:
                overrides = [] if name == "movietweetings" else paths(options.data.resolve(), name)
                rows[f"{name}/{model}"] = run(_config(path, overrides, recency=not options.no_recency))
            except FedrecError as error:
                print(f"| {model} | {error} |")
                continue
            print(line(model, rows[f"{name}/{model}"]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _config(path: Path, overrides: list[str], *, recency: bool) -> Config:
    config = load_config(path, overrides)
    if recency or not hasattr(config.model, "scoring_half_life"):
        return config
    model = config.model.model_copy(update={"scoring_half_life": None})
    return config.model_copy(update={"model": model})


def paths(data: Path, name: str) -> list[str]:
    """Overrides that point an experiment at the data."""
    overrides = [f'data.path="{data / name}"']
    if name == "ml-100k":
        overrides.append(f'split.path="{data / name / "leave_one_out.csv"}"')
    return overrides


if __name__ == "__main__":
    main()
