"""Users clustered by taste without anyone seeing one: spherical k-means whose every step is a sum over users.

A device makes a direction z_u of its history: the mean of the items' public vectors, seen from the centre of all
users, at length 1. It finds the nearest centroid c and sends (e_c, e_c z_uᵀ) / sqrt(2), a vector of norm 1: clipping
to 1 leaves it alone, and the noise that hides a user is known beforehand. Sums of these are all that a step of Lloyd
takes (Dhillon and Modha 2001, "Concept decompositions for large sparse text data using clustering", Machine Learning
42; with noise Su et al. 2016, "Differentially private k-means clustering", CODASPY). Centroids begin as those of the
items, which are public, never of users: k-means from a k-means++ start (Arthur and Vassilvitskii 2007, SODA). Where
no one is near a centroid it takes half of the largest cluster, split at random (Linde, Buzo and Gray 1980, "An
algorithm for vector quantizer design", IEEE Trans. Communications). A user's cluster is a function of the own history
and the centroids: it is found anew where it is needed, and no one is told.

Letters: U users, I items, F width of the public vectors, k clusters, N interactions.
Out of scope: what is done with clusters (`fedrec.recommenders.collaborative.clustered`), how sums are protected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.updates import BlockSpec, Dense, Layout, State, Updates, UpdateSum

Floats = NDArray[np.float64]

#: Each half of what a user sends; a little less than 1 / sqrt(2), so that no rounding makes the whole longer than 1.
HALF = (1.0 - 1e-9) / np.sqrt(2.0)
#: A cluster whose count is below this many standard deviations of its noise counts as empty.
SURE = 4.0
#: How far the halves of a cluster are moved apart; centroids have length 1.
APART = 0.5
#: Starts tried among the items, and steps of each.
TRIES, STEPS = 10, 10


@dataclass(frozen=True)
class Clusters:
    """What is broadcast of a clustering.

    Attributes:
        centre: [F] mean vector of users; zeros before it is known.
        centroid: [k, F] unit directions.
        size: [k] users that were counted (with noise); equal shares before they are known.
        steps: that were taken.
    """

    centre: Floats
    centroid: Floats
    size: Floats
    steps: int = 0

    def state(self) -> State:
        """As arrays."""
        arrays = {"centre": self.centre, "centroid": self.centroid, "size": self.size}
        return arrays | {"steps": np.array([self.steps])}

    @classmethod
    def of(cls, state: State) -> Clusters:
        """From the arrays of `state`; others are left alone."""
        return cls(state["centre"], state["centroid"], state["size"], int(state["steps"][0]))


def layout(k: int, width: int) -> Layout:
    """What a user sends in a step."""
    return Layout({"count": BlockSpec((k,)), "total": BlockSpec((k, width))})


def unit(vectors: NDArray[np.floating]) -> Floats:
    """Rows at length 1; zero stays zero."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norm > 1e-12, norm, np.inf), dtype=np.float64)


def start(items: NDArray[np.floating], k: int, seed: int) -> Clusters:
    """Clusters of the items' public vectors [I, F] of length 1 or 0: the tightest of several tries.

    Centroids are seen from the origin; the first step finds out where the users' centre is.
    """
    rng = np.random.default_rng(seed)
    known = items[np.any(items != 0.0, axis=1)].astype(np.float64)
    pool = known if len(known) else np.zeros((1, items.shape[1]))
    tries = [_lloyd(pool, _spread(pool, k, rng)) for _ in range(TRIES)]
    tightness = [float((pool @ centroid.T).max(axis=1).sum()) for centroid in tries]
    return Clusters(np.zeros(items.shape[1]), tries[int(np.argmax(tightness))], np.full(k, 1.0 / k))


def _spread(pool: Floats, k: int, rng: np.random.Generator) -> Floats:
    """[k, F] k-means++: each with odds that rise with its distance from those before."""
    chosen = [int(rng.integers(len(pool)))]
    for _ in range(k - 1):
        distance = np.maximum(1.0 - (pool @ pool[chosen].T).max(axis=1), 0.0)
        total = float(distance.sum())
        chosen.append(int(rng.choice(len(pool), p=distance / total if total > 0.0 else None)))
    return pool[chosen]


def _lloyd(pool: Floats, centroid: Floats) -> Floats:
    for _ in range(STEPS):
        own = np.eye(len(centroid))[np.argmax(pool @ centroid.T, axis=1)]
        moved = unit(own.T @ pool)
        centroid = np.where(own.any(axis=0)[:, None], moved, centroid)
    return centroid


def tastes(items: NDArray[np.floating], batch: UserBatch) -> Floats:
    """[U, F] mean of the public vectors of each user's items, of length 1 at most; zero for an empty history."""
    out = np.zeros((len(batch), items.shape[1]))
    np.add.at(out, batch.row, items[batch.item].astype(np.float64))
    return np.asarray(out / np.maximum(batch.counts, 1)[:, None])


def assigned(clusters: Clusters, taste: Floats) -> IntArray:
    """[U] the nearest centroid of each user; users without a taste go to the largest cluster."""
    direction = unit(taste - clusters.centre)
    nearest = np.argmax(direction @ clusters.centroid.T, axis=1)
    return np.where(np.any(taste != 0.0, axis=1), nearest, np.argmax(clusters.size)).astype(np.int64)


def contributions(clusters: Clusters, taste: Floats) -> Updates:
    """What users send; in the first step everyone counts to cluster 0, whose sum is then the centre."""
    n_users, width = taste.shape
    k, first = len(clusters.centroid), clusters.steps == 0
    own = np.zeros(n_users, dtype=np.int64) if first else assigned(clusters, taste)
    vector = taste if first else unit(taste - clusters.centre)
    here = np.any(taste != 0.0, axis=1)
    count, total = np.zeros((n_users, k)), np.zeros((n_users, k, width))
    count[np.arange(n_users), own] = HALF * here
    total[np.arange(n_users), own] = HALF * vector * here[:, None]
    return Updates({"count": Dense(count), "total": Dense(total)}, n_users)


def moved(clusters: Clusters, total: UpdateSum) -> Clusters:
    """Clusters after a step: the centre after the first, centroids after the others."""
    count, vectors, steps = total.blocks["count"] / HALF, total.blocks["total"] / HALF, clusters.steps + 1
    if clusters.steps == 0:
        centre = vectors[0] / max(float(count[0]), 1.0)
        return Clusters(centre, unit(clusters.centroid - centre), clusters.size, steps)
    sure = count > max(SURE * total.noise_std / HALF, 0.5)
    centroid = np.where(sure[:, None], unit(vectors), clusters.centroid)
    size = np.where(sure, count, 0.0)
    for empty in np.flatnonzero(~sure)[: int(sure.sum())]:
        _split(centroid, size, int(empty), np.random.default_rng([steps, int(empty)]))
    return Clusters(clusters.centre, centroid, size, steps)


def _split(centroid: Floats, size: Floats, empty: int, rng: np.random.Generator) -> None:
    """Half of the largest cluster for an empty one, in place: two centroids on both sides of the old one."""
    largest = int(np.argmax(size))
    away = APART * unit(rng.standard_normal(centroid.shape[1:]))
    centroid[empty], centroid[largest] = unit(centroid[largest] + away), unit(centroid[largest] - away)
    size[empty] = size[largest] = size[largest] / 2
