"""New users and new items: how good lists are after k events, and for items that no training saw.

    python -m benchmarks.cold_start [--data FOLDER]

Users: a tenth of the users is never trained on. Each with at least 11 interactions is asked after the first
k = 0, 1, 3, 5, 10 of them for the next one, among all items not seen yet; fold-in only, through the model that a
device serves (popularity for k = 0, as the SDK does).

Items: a tenth of the items is removed from training; each user whose last interaction is with one of them is asked
for it among the removed items alone, from titles and categories. `--data` is a folder with `ml-1m/`, whose terms
forbid bundling; without it only the bundled MovieTweetings is run. Intervals: 95 %, normal.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import EXPERIMENTS
from fedrec.core.interactions import Interactions
from fedrec.data.split import Split
from fedrec.data.splits import held_out_users
from fedrec.ranking._cold import add_items
from fedrec.ranking.items import Items
from fedrec.ranking.model import History, ServingModel
from fedrec.recommenders.registry import build
from fedrec.recommenders.serving import serving_form
from fedrec_simulations.experiments.config import Config, load_config
from fedrec_simulations.experiments.prepare import load

EVENTS = (0, 1, 3, 5, 10)
MODELS = ("popularity", "item-knn", "ease", "ials", "mf")
REMOVED = 0.1
TOP = 20
EPOCHS_MF = 20


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--data", type=Path, default=None)
    data = parser.parse_args().data
    profiles("movietweetings", [])
    if data is not None:
        profiles("ml-1m", [f'data.path="{(data / "ml-1m").resolve()}"'])
    new_items()


def profiles(name: str, overrides: list[str]) -> None:
    """One table: models by number of events."""
    print(f"\n### {name}: users unseen in training, NDCG@10 / Recall@20 of the next item after k events\n")
    print(f"| model | {' | '.join(f'k = {k}' for k in EVENTS)} |")
    print("|---|" + "---|" * len(EVENTS))
    for model in MODELS:
        config = load_config(EXPERIMENTS / f"{name}-{model}.toml", overrides)
        dataset, _ = load(config.data)
        split = held_out_users(dataset.interactions, 0.1, 0.0, seed=1)
        served = trained(config, split.train)
        users_of = list(histories(dataset.interactions, new_users(split)))
        popularity = np.bincount(split.train.item, minlength=split.train.n_items).astype(np.float64)
        cells = []
        for k in EVENTS:
            ranks = np.array(
                [rank_of_next(served, popularity, items, k) for items in users_of if len(items) > EVENTS[-1]]
            )
            gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0)
            cells.append(f"{interval(gains)} / {np.mean(ranks < TOP):.3f}")
        print(f"| {model} | {' | '.join(cells)} |", flush=True)


def trained(config: Config, train: Interactions) -> ServingModel:
    """The model that a device serves, trained centrally on these interactions: federated training gives the same."""
    recommender = build(config.model)
    epochs = recommender.fixed_rounds or (
        EPOCHS_MF if config.model.kind == "mf" else config.federation.rounds
    )
    return serving_form(recommender, recommender.fit(train, config.federation.seed, epochs)[0])


def new_users(split: Split) -> NDArray[np.int64]:
    """Users that were never trained on."""
    return np.flatnonzero(split.train.counts == 0)


def histories(interactions: Interactions, users: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Items of each user, oldest first."""
    for user in users:
        yield interactions.item[interactions.indptr[user] : interactions.indptr[user + 1]]


def rank_of_next(
    model: ServingModel, popularity: NDArray[np.float64], items: NDArray[np.int64], k: int
) -> int:
    """How many unseen items score higher than item k (ties against us), after the first k; popularity for k = 0."""
    history = History(items[:k], np.ones(k, np.float32))
    scores = model.scores(model.fold_in(history)).astype(np.float64) if k else popularity.copy()
    scores[items[:k]] = -np.inf
    target = scores[items[k]]
    return int(np.sum(scores >= target)) - 1


def new_items() -> None:
    """One table: models, and what chance gives."""
    print(f"\n### movietweetings: items unseen in training, Recall@{TOP} among the removed items\n")
    print("| model | from titles and categories | random |")
    print("|---|---|---|")
    for model in ("ease", "ials", "mf"):
        config = load_config(EXPERIMENTS / f"movietweetings-{model}.toml", [])
        dataset, _ = load(config.data)
        all_items, catalog = dataset.interactions, dataset.catalog
        rng = np.random.default_rng(0)
        removed = np.sort(rng.choice(all_items.n_items, round(REMOVED * all_items.n_items), replace=False))
        kept = np.setdiff1d(np.arange(all_items.n_items), removed)
        place = np.full(all_items.n_items, -1)
        place[kept] = np.arange(len(kept))
        last = all_items.indptr[1:] - 1
        evaluated = np.flatnonzero((all_items.counts > 1) & np.isin(all_items.item[last], removed))
        train = without(all_items, np.isin(all_items.item, kept), place, kept, last[evaluated])
        items = Items.of(
            catalog.item_ids[kept].tolist(),
            catalog.titles[kept].tolist(),
            [catalog.categories[k] for k in kept],
        )
        served, _ = add_items(
            trained(config, train),
            items,
            catalog.item_ids[removed].tolist(),
            catalog.titles[removed].tolist(),
            [catalog.categories[k] for k in removed],
        )
        hits = []
        for user in evaluated:
            own = place[all_items.item[all_items.indptr[user] : last[user]]]
            own = own[own >= 0]
            scores = served.scores(served.fold_in(History(own, np.ones(len(own), np.float32))))[len(kept) :]
            target = scores[np.searchsorted(removed, all_items.item[last[user]])]
            hits.append(float(np.sum(scores >= target) - 1 < TOP))
        print(
            f"| {model} | {interval(np.array(hits))} ({len(hits)} profiles) | {TOP / len(removed):.3f} |",
            flush=True,
        )


def without(
    interactions: Interactions,
    keep: NDArray[np.bool_],
    place: NDArray[np.int64],
    kept: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> Interactions:
    """Interactions with kept items only, renumbered, the targets taken out as well."""
    keep = keep.copy()
    keep[targets] = False
    return Interactions(
        interactions.user[keep],
        place[interactions.item[keep]],
        interactions.value[keep],
        interactions.timestamp[keep],
        interactions.user_ids,
        interactions.item_ids[kept],
    )


def interval(values: NDArray[np.float64]) -> str:
    """Mean and half of its 95 % interval."""
    return f"{values.mean():.3f} ±{1.96 * values.std() / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
