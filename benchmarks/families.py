"""Every recommender, centralised, federated, federated under user-level differential privacy, and with secure
aggregation.

    python -m benchmarks.families [--data FOLDER] [--sets movietweetings,ml-100k,ml-1m,msweb] [--models ...]
        [--modes central,federated,private,secagg] [--results FOLDER]
    python -m benchmarks.families --page

Each row is `simulations/experiments/<set>-<model>.toml`. Rounds and passes are chosen on the validation item; the
final fit learns from it too, and the test item is looked at once. `secagg` repeats the federated run's number of
rounds with every step of the protocol over four nodes; `private` takes the settings of `private.toml` beside the
experiments. Every row is kept in `benchmarks/results/<set>-<model>.json` as it comes, and a row that is there is not
run again: delete the file to measure anew. `--page` writes the tables of `docs/reference/families.md` from these
files. `--data` is a folder with the original files of the sets that may not be bundled.
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

from benchmarks.quality import EXPERIMENTS, paths
from fedrec.errors import FedrecError
from fedrec_simulations.config import Config, load_config
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.prepare import Prepared, prepare
from fedrec_simulations.run_folder import RunFolder
from fedrec_simulations.twin import fit_twin

MODELS = (
    "popularity", "item-knn", "ease", "ials", "mf", "item-graph", "gmf", "mlp", "neumf", "two-tower", "mult-vae",
    "deepfm", "gru4rec", "sasrec", "bert4rec", "content", "text-sequence",
)  # fmt: skip
MODES = ("central", "federated", "private", "secagg")
METRICS = ("full/ndcg@10", "full/recall@20", "sampled/hr@10", "sampled/ndcg@10")
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "families.md"
MARK = "<!-- below: python -m benchmarks.families --page -->\n"
SETS = {
    "ml-100k": "ML-100K (943 people, 1,682 films; the given split)",
    "ml-1m": "ML-1M (6,040 people, 3,416 films; order only)",
    "movietweetings": "MovieTweetings (4,333 people, 2,414 films; real times)",
    "msweb": "MSWeb (16,493 visitors, 251 areas of a web site; no order: a random area is held out)",
}
NODES = 4
PLAIN = {"unit": "none", "aggregator": "plain", "insecure": True}
#: Secure aggregation needs a bound of every update's norm: one that no update of a closed form reaches here.
LONGEST = dict.fromkeys(("ease", "item_knn", "ials", "item_graph"), 2.5e3) | {"content": 1e4}
Row = dict[str, Any]


def central(config: Config, prepared: Prepared, known: dict[str, Row]) -> Row:
    """The twin."""
    started = time.process_time()
    twin = fit_twin(config, prepared.split, features=prepared.catalog.features)
    return {
        "metrics": twin.report.as_dict()["metrics"]["all"],
        "rounds": twin.epochs,
        "seconds": time.process_time() - started,
        "fit_seconds": twin.fit_seconds,
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
    split = replace(prepared.split, train=prepared.split.learnable("final"), validation=None)
    return run(hidden, replace(prepared, split=split), NODES)


def private(config: Config, prepared: Prepared, known: dict[str, Row]) -> Row:
    """User-level (8, N^-1.1): sums are noised where they are made."""
    settings = tomllib.loads((EXPERIMENTS / "private.toml").read_text())
    own = settings.get(config.model.kind)
    if own is None:
        raise FedrecError("no settings for a private run of this model")
    plan = {"unit": "user", "trust": "central", "epsilon": 8.0, "metrics": "exact", "force": True}
    rules = {"clip_norm": None, "sampling": "poisson", "checkpoint_every": 10**6} | own.get("federation", {})
    noised = changed(
        config,
        model=own.get("model", {}),
        federation=rules,
        privacy=PLAIN | plan | own.get("privacy", {}),
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
        return {
            "metrics": outcome.result["test"]["metrics"]["all"],
            "rounds": outcome.rounds,
            "seconds": time.process_time() - started,
            "bytes_up": folder.records[-1]["bytes_up_per_user"],
            "model_bytes": outcome.result["model_bytes"],
        }


def cell(row: Row, metric: str) -> str:
    """Value and half its 95 % interval."""
    found = row["metrics"][metric]
    return f"{found['value']:.3f} ±{(found['high'] - found['low']) / 2:.3f}"


def line(model: str, mode: str, row: Row, twin: Row) -> str:
    """One line of a table."""
    share = row["metrics"]["full/ndcg@10"]["value"] / twin["metrics"]["full/ndcg@10"]["value"]
    sizes = [f"{row[key] / 1e3:,.0f}" if key in row else "" for key in ("bytes_up", "model_bytes")]
    spent = [f"{100 * share:.0f} %", str(row["rounds"]), f"{row['seconds']:.0f}"]
    return f"| {' | '.join([model, mode, *(cell(row, metric) for metric in METRICS), *spent, *sizes])} |"


def table(name: str, folder: Path = RESULTS) -> str:
    """One data set in Markdown, a line per recommender and way of training; empty when nothing is known."""
    lines = []
    for model in MODELS:
        rows = read(folder, name, model)
        lines += [
            line(model, mode, rows[mode], rows["central"]) for mode in MODES if {mode, "central"} <= set(rows)
        ]
    if not lines:
        return ""
    head = (
        f"## {SETS[name]}\n",
        "| recommender | trained | NDCG@10 | Recall@20 | sampled HR@10 | sampled NDCG@10 | of twin | rounds | CPU s "
        "| kB up | model kB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *lines, ""))


def page(text: str, folder: Path = RESULTS) -> str:
    """The page with its tables written again."""
    return text[: text.index(MARK)] + "\n".join([MARK, *(table(name, folder) for name in SETS)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Every recommender in every way of training")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="movietweetings,ml-100k,ml-1m,msweb")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", action="append", default=[], help="override, such as federation.rounds=5")
    parser.add_argument("--page", action="store_true", help="only write the tables of the documentation")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page(PAGE.read_text(), options.results))
        return
    for name in options.sets.split(","):
        for model in options.models.split(","):
            path = EXPERIMENTS / f"{name}-{model}.toml"
            if not path.exists() or (name != "movietweetings" and options.data is None):
                continue
            overrides = [] if name == "movietweetings" else paths(options.data.resolve(), name)
            config = load_config(path.resolve(), [*overrides, *options.set])
            fill(config, name, model, options.modes.split(","), options.results)
        print(table(name, options.results), flush=True)


def read(folder: Path, name: str, model: str) -> dict[str, Row]:
    """The rows known of one experiment, by way of training."""
    path = folder / f"{name}-{model}.json"
    return json.loads(path.read_text()) if path.exists() else {}


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
