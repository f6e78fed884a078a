"""What a list costs beyond the scores it is made of: n = 20 of 10k, 100k and 1M items, 200 seen, one thread.

    python -m benchmarks.lists [--items 100000] [--repeat 51]

Each line is a `fedrec.ranking.pipeline.RecommendationRequest`: median and 95th percentile of `rank` with it, and the
median beyond that of `model.scores` alone, measured in turns so that a busy machine disturbs both alike. Target: a
list of 100k items costs at most 1 ms more than its scores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fedrec.ranking.diversity import Dpp, Mmr
from fedrec.ranking.exploration import EpsilonGreedy, LinUcb, Thompson
from fedrec.ranking.factors import Factors
from fedrec.ranking.filters import Apart, AtMost, Boost, Pin
from fedrec.ranking.folding import Ridge
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.items import Items
from fedrec.ranking.model import History, ServingModel, User
from fedrec.ranking.pipeline import RecommendationRequest, rank
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.weights import SparseWeights

CATEGORIES = [f"category {k}" for k in range(20)]
SEEN, BLOCKED, WEIGHTS_PER_ITEM, EMBEDDING_SIZE = 200, 100, 50, 64


def main() -> None:
    """Print one table per model and size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=51)
    asked = parser.parse_args()
    for n_items in asked.items:
        for model in (factors(n_items), item_item(n_items)):
            report(model, asked.repeat)


def report(model: ServingModel, repeat: int) -> None:
    rng = np.random.default_rng(0)
    item_index = ItemIndex(model, catalogue(model.n_items))
    seen = rng.choice(model.n_items, SEEN, replace=False)
    user = model.fold_in(History(seen, np.ones(SEEN, np.float32)))
    start = time.perf_counter()
    item_index.members(CATEGORIES[0])
    print(
        f"\n{model.kind}, {model.n_items:,} items; categories once {(time.perf_counter() - start) * 1e3:.0f} ms"
    )
    print(f"{'':34}{'median ms':>10}{'p95':>8}{'beyond scores':>15}")
    for name, request in requests(model.n_items).items():
        scores, lists = in_turns(lambda: model.scores(user), listing(item_index, user, seen, request), repeat)
        beyond = statistics.median(lists) - statistics.median(scores)
        p95 = float(np.percentile(lists, 95))
        print(f"{name:34}{statistics.median(lists):10.2f}{p95:8.2f}{beyond:15.2f}")


def requests(n_items: int) -> dict[str, RecommendationRequest]:
    rng = np.random.default_rng(1)
    blocked = [f"i{k}" for k in rng.choice(n_items, BLOCKED, replace=False)]
    each = [AtMost(name, 3) for name in CATEGORIES]
    apart = Apart(CATEGORIES[1], 3)
    return {
        "nothing": RecommendationRequest(),
        "100 items blocked": RecommendationRequest(exclude=blocked),
        "3 of 20 categories": RecommendationRequest(allow=CATEGORIES[:3]),
        "without 3 of 20 categories": RecommendationRequest(deny=CATEGORIES[:3]),
        "freshness": RecommendationRequest(freshness=0.5),
        "boost, pin, apart": RecommendationRequest(rules=[Boost(1.0, CATEGORIES[3]), Pin("i5", 3), apart]),
        "at most 3 of each category": RecommendationRequest(rules=each),
        "all of one category, at most 15": RecommendationRequest(
            allow=CATEGORIES[:1], rules=[AtMost(CATEGORIES[0], 15)]
        ),
        "MMR": RecommendationRequest(diversity=Mmr()),
        "DPP": RecommendationRequest(diversity=Dpp()),
        "epsilon-greedy": RecommendationRequest(exploration=EpsilonGreedy()),
        "Thompson sampling": RecommendationRequest(exploration=Thompson()),
        "LinUCB": RecommendationRequest(exploration=LinUcb()),
        "all of it": RecommendationRequest(
            exclude=blocked,
            deny=CATEGORIES[:1],
            freshness=0.3,
            rules=[*each, Boost(0.5, CATEGORIES[3]), apart],
            diversity=Dpp(),
            exploration=Thompson(),
        ),
    }


def listing(
    item_index: ItemIndex, user: User, seen: np.ndarray, request: RecommendationRequest
) -> Callable[[], Any]:
    rng = np.random.default_rng(2)
    return lambda: rank(item_index, user, seen, request, rng=rng, now=1e8)


def in_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeat: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of both."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for act, times in zip((first, second), taken, strict=True):
            start = time.perf_counter()
            act()
            times.append((time.perf_counter() - start) * 1e3)
    return taken


def catalogue(n: int) -> Items:
    rng = np.random.default_rng(0)
    return Items.of(
        [f"i{k}" for k in range(n)],
        categories=[(CATEGORIES[k % 20], CATEGORIES[(k // 7) % 20]) for k in range(n)],
        popularity=rng.random(n).astype(np.float32),
        added=rng.random(n) * 1e8,
    )


def factors(n: int) -> Factors:
    rng = np.random.default_rng(0)
    return Factors(FloatTable(rng.normal(size=(n, EMBEDDING_SIZE)).astype(np.float32)), Ridge(0.1, 0.01))


def item_item(n: int) -> ItemItem:
    rng = np.random.default_rng(0)
    index = np.sort(rng.integers(0, n, (n, WEIGHTS_PER_ITEM)), axis=1).astype(np.int32)
    starts = np.arange(n + 1) * WEIGHTS_PER_ITEM
    return ItemItem(SparseWeights(starts, index.ravel(), rng.random(index.size).astype(np.float32)))


if __name__ == "__main__":
    main()
