"""Every recommender, centralised, federated, federated under user-level differential privacy, and with secure
aggregation.

    python -m benchmarks.families [--data FOLDER] [--sets movietweetings,ml-100k,ml-1m,msweb] [--models ...]
        [--modes central,federated,private,secagg] [--results FOLDER]

Each row is `simulations/experiments/<set>-<model>.toml`. Rounds and passes are chosen on the validation item; the
final fit learns from it too, and the test item is looked at once. `secagg` repeats the federated run's number of
rounds with every step of the protocol over four nodes; `private` takes the settings of `private.toml` beside the
experiments, and those of `sweep-<set>.toml` where that set was tuned. Every row is kept in
`benchmarks/results/<set>-<model>.json` as it comes, and a row that is there is not run again: delete the file to
measure anew. `benchmarks.family_pages` writes the pages from these files. `--data` is a folder with the original
files of the sets that may not be bundled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.family_pages import METRICS, MODELS, MODES, RESULTS, Row, line, read, table
from benchmarks.quality import EXPERIMENTS, paths
from fedrec.core.errors import FedrecError
from fedrec_simulations.engines.held_data import evaluate_held
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import Prepared, prepare
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.sweep.spec import load_sweep

NODES = 4
EPSILON = 8.0
#: Methods of a set's sweep whose settings hold for a model's private row.
SWEPT = {"popularity": "DP popularity", "ease": "DP EASE", "ials": "DP iALS", "item_graph": "DP EASE"}
PLAIN = {"unit": "none", "aggregator": "plain", "insecure": True}
#: Secure aggregation needs a bound of every update's norm: one that no update of a closed form reaches here.
LONGEST = dict.fromkeys(("ease", "item_knn", "ials", "item_graph"), 2.5e3) | {"content": 1e4}


def central(config: Config, prepared: Prepared, known: dict[str, Row]) -> Row:
    """The baseline."""
    started = time.process_time()
    baseline = fit_baseline(config, prepared.split, features=prepared.catalog.features)
    return {
        "metrics": baseline.report.as_dict()["metrics"]["all"],
        "rounds": baseline.epochs,
        "seconds": time.process_time() - started,
        "fit_seconds": baseline.fit_seconds,
    }


def federated(config: Config, prepared: Prepared, known: dict[str, Row]) -> Row:
    """In process, sums in the clear."""
    return run(config, prepared, 1)


def secagg(config: Config, prepared: Prepared, known: dict[str, Row]) -> Row:
    """All steps of the protocol; as many rounds as were chosen without it."""
    if "federated" not in known:
        raise FedrecError("run it federated first: that chooses the number of rounds")
    rules = {"rounds": known["federated"]["rounds"], "nodes": NODES, "checkpoint_every": 10**6}
    if config.federation.clip_norm is None:
        rules["clip_norm"] = LONGEST.get(config.model.kind, 100.0)
    hidden = changed(config, federation=rules, privacy={"unit": "none", "aggregator": "secagg"})
    split = replace(prepared.split, train=prepared.split.learnable("refit"), validation=None)
    return run(hidden, replace(prepared, split=split), NODES)


def private_settings(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """What differs from a model's experiment under (8, N^-1.1): as tuned for this set, or else for all.

    Raises:
        FedrecError: there are none.
    """
    own = tomllib.loads((EXPERIMENTS / "private.toml").read_text()).get(kind)
    if own is None:
        raise FedrecError("no settings for a private run of this model")
    sweep = EXPERIMENTS / f"sweep-{name}.toml"
    if kind not in SWEPT or not sweep.exists():
        return own
    (method,) = (method for method in load_sweep(sweep).method if method.name == SWEPT[kind])
    at = method.overrides_at(EPSILON)
    tuned = {
        section: getattr(method, section) | at.get(section, {})
        for section in ("model", "federation", "privacy")
    }
    if kind == "item_graph":
        # Its edges are those of the private EASE; what makes them a graph is its own.
        shared = own["model"].keys() & tuned["model"].keys() - {"kind"}
        tuned["model"] = own["model"] | {key: tuned["model"][key] for key in shared}
    return tuned


def private(config: Config, prepared: Prepared, known: dict[str, Row]) -> Row:
    """User-level (EPSILON, N^-1.1): sums are noised where they are made."""
    own = private_settings(config.model.kind, config.data.name)
    plan = {"unit": "user", "trust": "central", "epsilon": EPSILON, "force": True}
    rules = {"clip_norm": None, "sampling": "poisson", "checkpoint_every": 10**6} | own.get("federation", {})
    noised = changed(
        config,
        model=own.get("model", {}),
        federation=rules,
        privacy=PLAIN | plan | own.get("privacy", {}),
        evaluation={"held_data": True},
    )
    return run(noised, prepared, 1)


JOBS: dict[str, Callable[[Config, Prepared, dict[str, Row]], Row]] = {
    "central": central,
    "federated": federated,
    "private": private,
    "secagg": secagg,
}


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """Another configuration; `privacy` is replaced, other sections are added to."""
    plain = config.model_dump(mode="json")
    for name, values in sections.items():
        # Another kind of model, and what protects it, come whole.
        plain[name] = values if name == "privacy" or "kind" in values else plain[name] | values
    return Config.model_validate(plain)


def run(config: Config, prepared: Prepared, nodes: int) -> Row:
    """One federated run in process, and what it cost."""
    with tempfile.TemporaryDirectory(prefix="fedrec-families-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, prepared, nodes, share_split=False)
        started = time.process_time()
        outcome = run_in_process(folder.path)
        seconds = time.process_time() - started
        # A private run lets no exact metrics out: they are computed here, on data that is held here.
        test = outcome.result["test"] or evaluate_held(folder).as_dict()
        return {
            "metrics": test["metrics"]["all"],
            "rounds": outcome.rounds,
            "seconds": seconds,
            "bytes_up": folder.records[-1]["bytes_up_per_user"],
            "model_bytes": outcome.result["model_bytes"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Every recommender in every way of training")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="movietweetings,ml-100k,ml-1m,msweb")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", action="append", default=[], help="override, such as federation.rounds=5")
    options = parser.parse_args()
    for name in options.sets.split(","):
        for model in options.models.split(","):
            path = EXPERIMENTS / f"{name}-{model}.toml"
            if not path.exists() or (name != "movietweetings" and options.data is None):
                continue
            overrides = [] if name == "movietweetings" else paths(options.data.resolve(), name)
            config = load_config(path.resolve(), [*overrides, *options.set])
            fill(config, name, model, options.modes.split(","), options.results)
        print(table(name, options.results), flush=True)


def fill(config: Config, name: str, model: str, modes: list[str], folder: Path) -> None:
    """Runs what is not known yet of one experiment; each row is on disk before the next begins."""
    prepared = None
    for mode in modes:
        rows = read(folder, name, model)
        if mode in rows:
            continue
        prepared = prepared or prepare(config)
        try:
            row = JOBS[mode](config, prepared, rows)
        except FedrecError as error:
            print(f"{name} {model} {mode}: {error}", flush=True)
            continue
        row["metrics"] = {metric: row["metrics"][metric] for metric in METRICS}
        rows[mode] = row
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{model}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(line(model, mode, row, rows.get("central", row)), flush=True)


if __name__ == "__main__":
    main()
