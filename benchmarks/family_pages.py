"""The pages on every recommender, written from the recorded rows.

    python -m benchmarks.family_pages [--results FOLDER]

`docs/reference/families.md` keeps what stands above its mark and gets one table to choose by and one of peers below
it; `docs/reference/families/<set>.md` gets every figure of a set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

MODELS = (
    "popularity", "item-knn", "ease", "ials", "mf", "item-graph", "gmf", "mlp", "neumf", "two-tower", "mult-vae",
    "deepfm", "gru4rec", "sasrec", "bert4rec", "content", "text-sequence",
)  # fmt: skip
MODES = ("central", "federated", "private", "secagg")
METRICS = ("full/ndcg@10", "full/recall@20", "sampled/hr@10", "sampled/ndcg@10")
RESULTS = Path(__file__).parent / "results"
REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
#: Said beside private figures.
NOT_COVERED = (
    "Private rows: measured exactly on data that the researcher holds, which is not a release; epsilon covers "
    "neither that nor how settings were chosen."
)
MARK = "<!-- below: python -m benchmarks.family_pages -->\n"
SETS = {
    "ml-100k": "ML-100K (943 users, 1,682 films; the given split)",
    "ml-1m": "ML-1M (6,040 users, 3,416 films; order only)",
    "movietweetings": "MovieTweetings (4,333 users, 2,414 films; real times)",
    "msweb": "MSWeb (16,493 visitors, 251 areas of a web site; no order: a random area is held out)",
}
SHORT = {name: title.partition(" (")[0] for name, title in SETS.items()}
Row = dict[str, Any]
#: What others reach on the same splits: NDCG@10 and Recall@20 of the full ranking, sampled HR@10 and NDCG@10.
PEERS: dict[str, dict[str, tuple[str, tuple[float | None, float | None, float, float]]]] = {
    "ml-100k": {
        "popularity": ("counts", (0.040, 0.118, 0.414, 0.228)),
        "item-knn": ("cosine, k = 100", (0.059, 0.175, 0.620, 0.345)),
        "ease": ("λ = 100", (0.071, 0.221, 0.650, 0.383)),
        "ials": ("d = 64; implicit 0.7 and lenskit are lower", (0.074, 0.223, 0.677, 0.399)),
        "mf": ("torch, binary cross-entropy, Adam", (0.060, 0.204, 0.652, 0.368)),
        "neumf": ("torch, d = 16", (0.059, 0.197, 0.655, 0.376)),
        "sasrec": ("torch, full cross-entropy, 40 passes", (0.109, 0.304, 0.748, 0.478)),
    },
    "ml-1m": {
        "popularity": ("counts", (0.018, 0.068, 0.439, 0.240)),
        "item-knn": ("cosine, k = 50", (0.040, 0.133, 0.654, 0.385)),
        "ease": ("λ = 200", (0.054, 0.177, 0.665, 0.420)),
        "ials": ("d = 128; implicit 0.7 and lenskit are lower", (0.050, 0.172, 0.716, 0.440)),
        "mf": ("torch, binary cross-entropy", (0.034, 0.122, 0.645, 0.373)),
        "neumf": ("torch", (0.036, 0.124, 0.655, 0.385)),
        "sasrec": ("torch, full cross-entropy, untuned", (0.178, 0.413, 0.814, 0.616)),
    },
    "movietweetings": {
        "popularity": ("counts", (0.077, 0.231, 0.632, 0.415)),
        "item-knn": ("cosine, k = 200", (0.095, 0.279, 0.667, 0.455)),
        "ease": ("λ = 400", (0.094, 0.277, 0.647, 0.446)),
        "ials": ("implicit 0.7: .078, .256, .639, .427", (0.081, 0.250, 0.615, 0.414)),
        "sasrec": ("torch, dropout .5, 40 passes", (0.138, 0.336, 0.676, 0.480)),
    },
    "msweb": {
        "popularity": ("counts", (0.352, None, 0.767, 0.521)),
        "item-knn": ("cosine", (0.476, None, 0.849, 0.628)),
        "ease": ("", (0.524, None, 0.865, 0.666)),
        "ials": ("", (0.478, None, 0.840, 0.627)),
    },
}


def read(folder: Path, name: str, model: str) -> dict[str, Row]:
    """The rows known of one experiment, by way of training."""
    path = folder / f"{name}-{model}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def cell(row: Row, metric: str) -> str:
    """Value and half its 95 % interval."""
    found = row["metrics"][metric]
    return f"{found['value']:.3f} ±{(found['high'] - found['low']) / 2:.3f}"


def line(model: str, mode: str, row: Row, baseline: Row) -> str:
    """One line of a table."""
    share = row["metrics"]["full/ndcg@10"]["value"] / baseline["metrics"]["full/ndcg@10"]["value"]
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
    head = (
        "| recommender | trained | NDCG@10 | Recall@20 | sampled HR@10 | sampled NDCG@10 | baseline | rounds | CPU s "
        "| kB up | model kB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *lines, "")) if lines else ""


def short(row: Row | None, metric: str = "full/ndcg@10") -> str:
    """Three digits without the leading zero."""
    return "n/a" if row is None else f"{row['metrics'][metric]['value']:.3f}".removeprefix("0")


def overview(folder: Path = RESULTS) -> str:
    """A line per recommender: NDCG@10 of the full ranking in each way of training, on each set."""
    head = (
        "## One table to choose by\n",
        "NDCG@10 of the full ranking: central · federated · private · under secure aggregation. kB up (of one user "
        "in one round), rounds and the model's size are those of the federated run on ML-1M. "
        f"{NOT_COVERED}\n",
        f"| recommender | {' | '.join(f'[{SHORT[name]}](families/{name}.md)' for name in SETS)} | kB up | rounds "
        "| model kB |",
        f"|{'---|' * (len(SETS) + 4)}",
    )
    lines = []
    for model in MODELS:
        known = {name: read(folder, name, model) for name in SETS}
        figures = [
            " · ".join(short(known[name].get(mode)) for mode in MODES) if known[name] else "" for name in SETS
        ]
        cost = known["ml-1m"].get("federated", {})
        sizes = [f"{cost[key] / 1e3:,.0f}" if key in cost else "" for key in ("bytes_up", "model_bytes")]
        lines.append(f"| {' | '.join([model, *figures, sizes[0], str(cost.get('rounds', '')), sizes[1]])} |")
    return "\n".join((*head, *lines, ""))


def peers(folder: Path = RESULTS) -> str:
    """Our centralised baselines beside what others reach on the same splits."""
    head = (
        "## Baselines beside their peers\n",
        "NDCG@10, Recall@20, sampled HR@10, sampled NDCG@10. Peers were fitted once on the same splits, tuned on the "
        "validation item, with negatives that do not avoid held-out items: implicit 0.7, lenskit 2025.8, torch, and "
        "NumPy for closed forms. Their 99 sampled items are another draw: the standard error of a sampled HR@10 is "
        ".016 on ML-100K and .006 on ML-1M. On MSWeb, which has no order, held-out areas are another draw, too.\n",
        "| data | recommender | peer | the peer's | our baseline's |",
        "|---|---|---|---|---|",
    )
    lines = []
    for name, known in PEERS.items():
        for model, (what, figures) in known.items():
            baseline = read(folder, name, model)["central"]
            theirs = ", ".join("n/a" if f is None else f"{f:.3f}".removeprefix("0") for f in figures)
            ours = ", ".join(short(baseline, metric) for metric in METRICS)
            lines.append(f"| {SHORT[name]} | {model} | {what} | {theirs} | {ours} |")
    return "\n".join((*head, *lines, ""))


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """Every page's path and text."""
    chooser = REFERENCE / "families.md"
    told = chooser.read_text().split(MARK)[0]
    out = {chooser: "\n".join([told + MARK, overview(folder), peers(folder)])}
    for name, title in SETS.items():
        back = "How rows came about: [every recommender, four ways of training](../families.md)."
        parts = [f"# {title}\n", back, NOT_COVERED + "\n", table(name, folder)]
        out[REFERENCE / "families" / f"{name}.md"] = "\n".join(parts)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="The pages on every recommender")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for path, text in pages(parser.parse_args().results).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
