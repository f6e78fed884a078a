"""Personalisation levels compared: how much of a model should be a user's own?

    python -m benchmarks.personalisation [--data FOLDER] [--sets ml-100k,movietweetings] [--models sasrec,gmf]

A small SASRec (d = 32, one block) with a personal head, and GMF, whose user vectors are personal anyway. Each level's
rate is chosen on the validation item, test items are looked at once, differences are paired by user; `few`, `middle`
and `many` are users by length of history. See docs/explanation/personalisation.md. About ten CPU minutes a set.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.variants import METRICS, Result, Variant, changed, compare, difference, load, table
from fedrec.evaluation.report import GROUPS


def adam(rate: float) -> dict[str, Any]:
    """A device optimiser."""
    return {"name": "adam", "learning_rate": rate}


def levels(level: str, rates: tuple[float, ...], **more: Any) -> list[dict[str, Any]]:
    """Candidates of one level whose personal part learns by Adam, or jointly by SGD."""
    return [
        {
            "personal": {
                "level": level,
                "device": {"learning_rate": r} if level == "fedper" else adam(r),
                **more,
            }
        }
        for r in rates
    ]


SEQUENCE = (
    Variant("shared only", [{}]),
    Variant("FedPer", levels("fedper", (0.1, 0.3))),
    Variant("FedRep", levels("fedrep", (0.001, 0.003), steps=3)),
    Variant("FedRecon", levels("fedrecon", (0.001, 0.003), steps=5)),
    Variant("tuned where it is served", levels("mixed", (0.001, 0.003), weights=(1.0,))),
    Variant("mixed, own weight", levels("mixed", (0.003, 0.01))),
)
VECTORS = (
    Variant("joint (FedPer)", [{}]),
    Variant("FedRep", levels("fedrep", (0.003, 0.01), steps=3)),
    Variant("FedRecon", levels("fedrecon", (0.01, 0.03), steps=10)),
)
#: The variants and what is changed in the experiment of `simulations/experiments`.
MODELS: dict[str, tuple[tuple[Variant, ...], dict[str, Any]]] = {
    "sasrec": (SEQUENCE, {"embedding_size": 32, "blocks": 1, "server": adam(0.003)}),
    "gmf": (VECTORS, {}),
}
ROUNDS: dict[tuple[str, str], dict[str, Any]] = {
    ("ml-100k", "sasrec"): {"rounds": 420, "evaluate_every": 42, "patience": 2},
    ("movietweetings", "sasrec"): {"rounds": 660, "evaluate_every": 132, "patience": 1},
}


def by_length(results: Mapping[str, Result]) -> str:
    """Markdown: differences to the first variant among users with few, more and many events."""
    first = next(iter(results.values()))
    lines = [f"| {METRICS[0]}: difference (95 %) | {' | '.join(GROUPS)} |", "|---|---|---|---|"]
    for name, result in results.items():
        if result is first:
            continue
        cells = []
        for group in range(len(GROUPS)):
            if not first.sums.users[group, 0]:
                cells.append("no one")
                continue
            apart, low, high = difference(result.sums, first.sums, METRICS[0], [group])
            cells.append(f"{apart:+.4f} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Personalisation levels compared")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--sets", default="ml-100k,movietweetings")
    parser.add_argument("--models", default="sasrec,gmf")
    options = parser.parse_args()
    for name in options.sets.split(","):
        if name != "movietweetings" and options.data is None:
            print(f"{name}: not run; give --data FOLDER with its original files")
            continue
        for model in options.models.split(","):
            variants, small = MODELS[model]
            config, prepared = load(f"{name}-{model}", options.data)
            config = changed(config, small, ROUNDS.get((name, model), {}))
            print(f"\n### {name}, {model}\n", flush=True)
            results = compare(config, prepared, variants, lambda line: print(f"  {line}", flush=True))
            print(f"\n{table(results)}\n\n{by_length(results)}", flush=True)


if __name__ == "__main__":
    main()
