"""The compiled walk of synthetic users over real histories; see `fedrec_simulations.experiments.population`.

Draws are counter-based (SplitMix64, as in `fedrec.core.randomness`): for simulation, never for privacy.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fedrec.core.compiled_randomness import mix
from fedrec.core.randomness import GAMMA

#: Items in a row that may be passed over before the walk starts anew somewhere, and how often it may.
PASSED_OVER = 24
RESTARTS = 400
#: Added to the number of items compared, so that a match among two or three does not count for much.
FEW = 4.0

_compiled: Any = numba.njit(cache=True, nogil=True)


def _unit_of(state: Any) -> Any:
    """A uniform in [0, 1)."""
    return np.float64(np.int64(mix(state) >> np.uint64(11))) * 2.0**-53


_unit = _compiled(_unit_of)


def _crossing(
    items: Any,
    owner: Any,
    indptr: Any,
    of_item: Any,
    by_item: Any,
    taken: Any,
    mark: Any,
    position: Any,
    state: Any,
    candidates: Any,
    window: Any,
) -> Any:
    """Where in another history the walk goes on, and the state of the draws; -1 if nowhere.

    Each of `candidates` random owners of the item is evaluated by the share of the `window` items before it
    that the walk has taken.
    """
    lo, hi = of_item[items[position]], of_item[items[position] + 1]
    best, best_likeness = -1, -1.0
    for _ in range(candidates):
        state = state + GAMMA
        there = by_item[lo + int(_unit(state) * (hi - lo))]
        who = owner[there]
        if who == owner[position] or there + 1 >= indptr[who + 1]:
            continue
        overlap, begin = 0, max(indptr[who], there - window)
        for back in range(begin, there):
            if taken[items[back]] == mark:
                overlap += 1
        likeness = overlap / (there - begin + FEW)
        if likeness > best_likeness:
            best, best_likeness = there + 1, likeness
    return best, state


_cross = _compiled(_crossing)


def _walk(
    items: Any,
    owner: Any,
    indptr: Any,
    of_item: Any,
    by_item: Any,
    start: Any,
    lengths: Any,
    keys: Any,
    crossover: Any,
    candidates: Any,
    window: Any,
    out: Any,
    counts: Any,
) -> Any:
    """Walks of all `start` users, written one after the other; how many items there are in all.

    Args:
        items, owner: [N] item and user of each real interaction.
        indptr: [U+1] histories in `items`.
        of_item, by_item: [I+1], [N] places of each item in `items`.
        start: [W] the history in which each walk begins; lengths: [W] how many items it is to take.
        keys: [W] uint64, the root of each walk's draws.
        crossover, candidates, window: see `Walk`.
        out: filled from the front; counts: [W] filled, fewer than `lengths` where the catalogue is used up.
    """
    taken = np.full(len(of_item) - 1, -1, np.int32)
    filled = 0
    for u in range(len(start)):
        state, position = keys[u], indptr[start[u]]
        begin, passed, restarts = filled, 0, 0
        while filled - begin < lengths[u] and restarts <= RESTARTS:
            if taken[items[position]] == u:
                passed += 1
            else:
                taken[items[position]] = u
                out[filled] = items[position]
                filled += 1
                passed = 0
            state = state + GAMMA
            last = position + 1 == indptr[owner[position] + 1]
            following = -1 if last else position + 1
            if last or _unit(state) < crossover:
                there, state = _cross(
                    items, owner, indptr, of_item, by_item, taken, u, position, state, candidates, window
                )
                following = there if there >= 0 else following
            if following < 0 or passed > PASSED_OVER:
                state = state + GAMMA
                following = int(_unit(state) * len(items))
                restarts += passed > PASSED_OVER
                passed = 0
            position = following
        counts[u] = filled - begin
    return filled


#: `_walk`, compiled.
walk: Any = _compiled(_walk)
