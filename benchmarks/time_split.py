"""Evaluated by time: what all users did last is held out, so that no model has learned from a later day.

    python -m benchmarks.time_split [--models popularity,ease,sasrec] [--fraction 0.1]

Leave-one-out holds out each user's last event and learns from later events of others: a model may know of a film
what became known afterwards (Ji et al. 2023, "A critical study on data leakage in recommender system offline
evaluation", ACM TOIS). Here the last tenth of all events of MovieTweetings is the test part and the tenth before it
chooses the rounds. Settings are those of leave-one-out, federated, in process. Users without an earlier event are
strangers to every model here and are not asked.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from benchmarks.families import EXPERIMENTS, cell, changed, run
from fedrec.data.split import Split
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import prepare

MODELS = "popularity,item-knn,ease,ials,item-graph,mf,two-tower,gru4rec,sasrec,bert4rec"
METRICS = ("full/ndcg@10", "full/recall@20")


def by_time(name: str, fraction: float) -> Config:
    """An experiment on MovieTweetings with another split."""
    config = load_config((EXPERIMENTS / f"movietweetings-{name}.toml").resolve())
    return changed(config, split={"method": "temporal", "fraction": fraction})


def known_only(split: Split) -> Split:
    """The same split, of whose test part only users with an earlier event are asked."""
    assert split.test is not None
    known = split.history("refit").counts > 0
    return replace(split, test=split.test.select(known[split.test.user]))


def describe(split: Split) -> str:
    """Who is asked, and what."""
    asked = known_only(split).test
    assert asked is not None and split.test is not None
    users = (asked.counts > 0).sum()
    seen = np.isin(asked.item, split.history("refit").item).mean()
    return (
        f"{users:,} users are asked for {len(asked):,} events, {seen:.0%} of them with films that someone had "
        f"before; {(split.test.counts > 0).sum() - users} strangers are left out"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="MovieTweetings, split by time")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--fraction", type=float, default=0.1)
    options = parser.parse_args()
    for position, name in enumerate(options.models.split(",")):
        config = by_time(name, options.fraction)
        prepared = prepare(config)
        if not position:
            print(describe(prepared.split) + "\n")
            print("| recommender | NDCG@10 | Recall@20 | rounds | CPU s |\n|---|---|---|---|---|")
        row = run(config, replace(prepared, split=known_only(prepared.split)), 1)
        cells = [
            name,
            *(cell(row, metric) for metric in METRICS),
            str(row["rounds"]),
            f"{row['seconds']:.0f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
