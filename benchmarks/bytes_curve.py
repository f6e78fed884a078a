"""Quality against bytes: what a user's device sends in a round, and what the model is worth.

    python -m benchmarks.bytes_curve --data FOLDER [--only NAME,...] [--results FILE] [--plot FILE.png]

ML-1M, leave-one-out, federated; each line is SASRec or matrix factorisation with another width or another way of
`[federation] compression`. Rounds are chosen on the validation item and the test item is looked at once. Beside it
stand the published points of CoLR (Nguyen et al. 2024, "Towards efficient communication and secure federated
recommendation system via low-rank training", WWW): sampled HR@10 at so many kB a round. Every line is kept in
`benchmarks/results/bytes-curve.json` as it comes, and is not run again while it is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.families import RESULTS, changed
from benchmarks.quality import EXPERIMENTS, paths
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import load_config
from fedrec_simulations.experiments.prepare import prepare
from fedrec_simulations.experiments.run_folder import RunFolder

#: kB a round, sampled HR@10.
COLR = ((58.0, 0.607), (29.0, 0.592), (15.0, 0.572))
METRICS = ("sampled/hr@10", "sampled/ndcg@10", "full/ndcg@10", "full/recall@20")
Row = dict[str, Any]


def sasrec(size: int, **compression: Any) -> dict[str, dict[str, Any]]:
    """One block of attention, `size` wide."""
    rate = 0.005 if size < 24 else 0.003
    return {
        "model": {
            "embedding_size": size,
            "blocks": 1,
            "dropout": 0.1,
            "max_length": 50,
            "windows": "latest",
            "server": {"name": "adam", "learning_rate": rate},
        },
        "federation": {
            "sampling_rate": 0.02,
            "sampling": "poisson",
            "clip_norm": 2.0,
            "rounds": 1500,
            "evaluate_every": 150,
            "patience": 3,
            "compression": compression or None,
            "checkpoint_every": 10**6,
        },
    }


#: Name, experiment, what differs from it.
POINTS = {
    "SASRec 32, whole": ("ml-1m-sasrec", sasrec(32)),
    "SASRec 30, 4 bits": ("ml-1m-sasrec", sasrec(30, bits=4)),
    "SASRec 15, 8 bits": ("ml-1m-sasrec", sasrec(15, bits=8)),
    "SASRec 15, 4 bits": ("ml-1m-sasrec", sasrec(15, bits=4)),
    "SASRec 7, 4 bits": ("ml-1m-sasrec", sasrec(7, bits=4)),
    "SASRec 32, rank 8, 4 bits": ("ml-1m-sasrec", sasrec(32, rank=8, bits=4)),
    "SASRec 32, rows 1/4, 4 bits": ("ml-1m-sasrec", sasrec(32, rows=0.25, bits=4)),
    "SASRec 7, rows 1/4, 4 bits": ("ml-1m-sasrec", sasrec(7, rows=0.25, bits=4)),
    "SASRec 7, rows 1/4 with feedback, 4 bits": ("ml-1m-sasrec", sasrec(7, rows=0.25, feedback=True, bits=4)),
    "MF 16, 4 bits": (
        "ml-1m-mf",
        {
            "model": {"embedding_size": 16},
            "federation": {
                "compression": {"bits": 4},
                "sampling_rate": 0.1,
                "rounds": 400,
                "evaluate_every": 40,
            },
        },
    ),
}


def measure(name: str, data: Path) -> Row:
    """One line of the curve."""
    experiment, change = POINTS[name]
    config = load_config(EXPERIMENTS / f"{experiment}.toml", paths(data, "ml-1m"))
    config = changed(config, **change)
    with tempfile.TemporaryDirectory(prefix="fedrec-bytes-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", config, prepare(config), 1, share_split=False)
        started = time.process_time()
        outcome = run_in_process(folder.path)
        record = folder.records[-1]
        return {
            "metrics": {metric: outcome.result["test"]["metrics"]["all"][metric] for metric in METRICS},
            "rounds": outcome.rounds,
            "seconds": time.process_time() - started,
            "up": record["bytes_up_per_user"],
            "down": record["bytes_down_per_user"],
            "rate": config.federation.sampling_rate,
        }


def table(results: dict[str, Row]) -> str:
    """Markdown, the dearest first; kB of 1,000 bytes."""
    lines = [
        "| what is sent | kB up a round | kB up in all | kB down a round | rounds | sampled HR@10 | NDCG@10 "
        "| full NDCG@10 | Recall@20 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(results.items(), key=lambda pair: -pair[1]["up"]):
        up, down = row["up"] / 1e3, row["down"] / 1e3
        found = [f"{row['metrics'][metric]['value']:.3f}" for metric in METRICS]
        whole = up * row["rounds"] * row["rate"]
        lines.append(
            f"| {name} | {up:,.1f} | {whole:,.0f} | {down:,.0f} | {row['rounds']} | {' | '.join(found)} |"
        )
    lines += [f"| CoLR, published | {size:g} | | | | {quality:.3f} | | | |" for size, quality in COLR]
    return "\n".join(lines)


def margins(results: dict[str, Row]) -> str:
    """For each published point the best of ours that costs no more."""
    lines = []
    for size, quality in COLR:
        fitting = {name: row for name, row in results.items() if row["up"] / 1e3 <= size}
        if fitting:
            best = max(fitting, key=lambda name: fitting[name]["metrics"]["sampled/hr@10"]["value"])
            ours = fitting[best]["metrics"]["sampled/hr@10"]["value"]
            lines.append(
                f"{size:g} kB: CoLR {quality:.3f}, ours {ours:.3f} ({best}, {fitting[best]['up'] / 1e3:.1f} kB): "
                f"{100 * (ours - quality):+.1f} points"
            )
    return "\n".join(lines)


def plot(results: dict[str, Row], path: Path) -> None:
    """The curve as a picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row, name in ((row, name) for name, row in results.items()):
        x, y = row["up"] / 1e3, row["metrics"]["sampled/hr@10"]["value"]
        axes.plot(x, y, "o", color="tab:blue" if name.startswith("SASRec") else "tab:green")
        axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.plot(*zip(*COLR, strict=True), "s--", color="tab:gray", label="CoLR, published")
    axes.set(xscale="log", xlabel="kB up, per user and round", ylabel="sampled HR@10", title="ML-1M")
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality against bytes on ML-1M")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default=",".join(name.replace(",", ";") for name in POINTS))
    parser.add_argument("--results", type=Path, default=RESULTS / "bytes-curve.json")
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    results: dict[str, Row] = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in (each.replace(";", ",") for each in options.only.split(",")):
        if name not in results:
            results[name] = measure(name, options.data.resolve())
            options.results.parent.mkdir(parents=True, exist_ok=True)
            options.results.write_text(json.dumps(results, indent=1) + "\n")
            print(table({name: results[name]}).splitlines()[2], flush=True)
    print(table(results))
    print(margins(results))
    if options.plot is not None:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
