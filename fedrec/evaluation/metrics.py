"""What ranks and lists are worth: every metric with its formula.

Ranking metrics are per user; for a user of whom nothing is held out they are NaN, so that no one can average
over such users unnoticed. Letters: U users, I items, T_u held-out items of user u with ranks r (1 is best),
k the cut-off, C categories, n list length. Relevance is binary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import IntArray
from fedrec.evaluation.names import METRICS, Metric, shown
from fedrec.evaluation.ranks import Ranks

__all__ = ["AT_K", "METRICS", "Floats", "Metric", "Ranks", "all_metrics", "metric_names"]

Floats = NDArray[np.float64]


@METRICS.register("hr")
def hit_rate(ranks: Ranks, k: int) -> Floats:
    """[U] HR@k = 1 if any r <= k, else 0."""
    return _per_user(ranks, np.minimum(_hits(ranks, k), 1.0))


@METRICS.register("recall")
def recall(ranks: Ranks, k: int) -> Floats:
    """[U] recall@k = #{r <= k} / T_u; with one held-out item it equals HR@k."""
    return _per_user(ranks, _hits(ranks, k) / np.maximum(ranks.held, 1))


@METRICS.register("capped_recall")
def capped_recall(ranks: Ranks, k: int) -> Floats:
    """[U] #{r <= k} / min(T_u, k): 1 where the list is as good as its length allows.

    The "Recall@k" of Liang et al. 2018, "Variational autoencoders for collaborative filtering", WWW, section 4.2,
    and of the work that follows it.
    """
    return _per_user(ranks, _hits(ranks, k) / np.clip(ranks.held, 1, k))


@METRICS.register("precision")
def precision(ranks: Ranks, k: int) -> Floats:
    """[U] precision@k = #{r <= k} / k, also where fewer than k items could be ranked."""
    return _per_user(ranks, _hits(ranks, k) / k)


@METRICS.register("f1")
def f1(ranks: Ranks, k: int) -> Floats:
    """[U] F1@k = 2 P R / (P + R) of precision@k and recall@k = 2 #{r <= k} / (k + T_u)."""
    return _per_user(ranks, 2 * _hits(ranks, k) / (k + ranks.held))


@METRICS.register("ndcg")
def ndcg(ranks: Ranks, k: int) -> Floats:
    """[U] NDCG@k = Σ_{r <= k} 1 / log2(r + 1), over its value when the T_u items lead the list.

    Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), with the
    discount log2(r + 1) that is usual today.
    """
    gains = np.where(ranks.rank <= k, 1 / np.log2(ranks.rank + 1.0), 0.0)
    ideal = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(2.0, k + 2)))])
    return _per_user(ranks, _sum(ranks, gains) / ideal[np.minimum(ranks.held, k)])


@METRICS.register("mrr")
def reciprocal_rank(ranks: Ranks, k: int) -> Floats:
    """[U] MRR@k = 1 / min r if min r <= k, else 0 (Voorhees 1999, TREC-8 question answering track)."""
    best = np.zeros(len(ranks.held))
    np.maximum.at(best, ranks.row, np.where(ranks.rank <= k, 1.0 / ranks.rank, 0.0))
    return _per_user(ranks, best)


@METRICS.register("map")
def average_precision(ranks: Ranks, k: int) -> Floats:
    """[U] MAP@k = (1 / T_u) Σ_{r <= k} precision@r: divided by all held-out items, also where T_u > k.

    Manning, Raghavan and Schütze 2008, "Introduction to information retrieval", section 8.4, cut at k.
    """
    place = ranks.rank - _better_candidates(ranks)
    gains = np.where(ranks.rank <= k, place / ranks.rank, 0.0)
    return _per_user(ranks, _sum(ranks, gains) / np.maximum(ranks.held, 1))


def auc(ranks: Ranks) -> Floats:
    """[U] share of (held-out, candidate) pairs in the right order; a tie is wrong; 0.5 without any candidate.

    Rendle et al. 2009, "BPR", UAI, section 4.1.1, up to the rule for ties.
    """
    wrong = _sum(ranks, _better_candidates(ranks).astype(np.float64))
    pairs = ranks.held * ranks.candidates
    return _per_user(ranks, np.where(pairs > 0, 1 - wrong / np.maximum(pairs, 1), 0.5))


#: fedrec's own, which every evaluation computes, in the order of reports.
AT_K = ("hr", "ndcg", "recall", "capped_recall", "precision", "f1", "mrr", "map")


def metric_names(ks: Sequence[int], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the metrics that `all_metrics` computes."""
    return (*(f"{shown(name)}@{k}" for k in ks for name in (*AT_K, *more)), "auc")


def all_metrics(ranks: Ranks, ks: Sequence[int], more: Sequence[str] = ()) -> dict[str, Floats]:
    """Every metric at every cut-off, as `ndcg@10`, and `auc`; each [U].

    Args:
        ranks: of U users.
        ks: cut-offs.
        more: metrics of others, beside fedrec's own.
    """
    found = {f"{shown(name)}@{k}": METRICS.get(name)(ranks, k) for k in ks for name in (*AT_K, *more)}
    return found | {"auc": auc(ranks)}


def coverage(recommended: Floats) -> float:
    """Share of the catalogue that is in anyone's list; `recommended` [I] counts the lists with each item."""
    return float(np.mean(recommended > 0))


def novelty(recommended: Floats, owners: Floats, population: float) -> float:
    """Mean over all recommended entries of -log2(share of users who have the item), in bits.

    Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 107(10).
    An item that no one has counts as one that a single user has.

    Args:
        recommended: [I] lists with each item.
        owners: [I] users who have each item in their history.
        population: number of users behind `owners`.
    """
    share = np.clip(owners, 1, None) / max(population, 1.0)
    return float(np.sum(recommended * -np.log2(np.minimum(share, 1.0))) / np.sum(recommended))


def gini(recommended: Floats) -> float:
    """Gini index of how often each item of the catalogue is recommended: 0 all alike, near 1 a few get all.

    G = Σ_i (2 i - I - 1) x_(i) / (I Σ x) over the counts x in growing order, i = 1..I.
    """
    x = np.sort(recommended)
    i = np.arange(1, len(x) + 1)
    return float(np.sum((2 * i - len(x) - 1) * x) / (len(x) * np.sum(x)))


def diversity(lists: IntArray, categories: NDArray[np.floating]) -> Floats:
    """[U] intra-list diversity: 1 - mean cosine of the category vectors over the pairs of a list.

    Ziegler et al. 2005, "Improving recommendation lists through topic diversification", WWW. Items without
    any category take no part; NaN where fewer than two are left.

    Args:
        lists: [U, n] items, -1 for none.
        categories: [I, C], non-negative.
    """
    length = np.linalg.norm(categories, axis=1)
    unit = categories / np.where(length > 0, length, 1.0)[:, None]
    known = (lists >= 0) & (length[lists] > 0)
    total = (unit[lists] * known[..., None]).sum(axis=1)
    n = known.sum(axis=1)
    # |Σ v|² counts every ordered pair once and every unit vector with itself.
    pair_sum, pairs = np.square(total).sum(axis=1) - n, n * (n - 1.0)
    return np.where(n > 1, 1 - pair_sum / np.maximum(pairs, 1.0), np.nan)


def _hits(ranks: Ranks, k: int) -> Floats:
    return _sum(ranks, (ranks.rank <= k).astype(np.float64))


def _sum(ranks: Ranks, values: Floats) -> Floats:
    """[U] sums of the entries of each user."""
    return np.asarray(np.bincount(ranks.row, values, minlength=len(ranks.held)), dtype=np.float64)


def _per_user(ranks: Ranks, values: Floats) -> Floats:
    return np.where(ranks.held > 0, values, np.nan)


def _better_candidates(ranks: Ranks) -> IntArray:
    """[N] candidates before each held-out item: its rank without the user's own held-out items."""
    order = np.lexsort((ranks.rank, ranks.row))
    place = np.empty(len(ranks.rank), dtype=np.int64)
    place[order] = np.arange(len(ranks.rank)) - ranks.indptr[ranks.row]
    return np.asarray(ranks.rank - 1 - place, dtype=np.int64)
