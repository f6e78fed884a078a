"""Large item tables: in each round everybody sends the same random part of the rows, whole, and nothing else.

Which rows a user touches tells what the user likes, so rows are never chosen by a user. The part is drawn from the
run's public seed and the round, and is the same on all devices; over the rounds every row has its turns. Updates are
computed and clipped whole, and a part of a vector is no longer than the vector, so bounds and noise stay as planned.
Only models whose update is a gradient can be sent in parts: to them a row that is not sent means "no step". Models
in closed form solve each row from its sums and are sent whole.

Letters: I items. Out of scope: hiding what is sent.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedrec.data.interactions import IntArray
from fedrec.learning.keys import Purpose, key, user_keys
from fedrec.learning.settings import NodeSettings
from fedrec.learning.updates import Layout, State


def round_layout(
    layout: Layout, n_items: int, settings: NodeSettings, round_: int, *, gradient: bool
) -> Layout:
    """What is sent in a round: the layout itself, or one of some rows of every item table.

    Args:
        layout: of the whole update.
        n_items: I, the first axis of item tables.
        settings: of the run; `shard_parameters` is the most values that are sent.
        round_: from 1.
        gradient: the update is a gradient.
    """
    rows = shard_rows(layout, n_items, settings, round_) if gradient else None
    if rows is None:
        return layout
    blocks = {
        name: replace(spec, rows=rows) if spec.shape[0] == n_items and not spec.symmetric else spec
        for name, spec in layout.blocks.items()
    }
    return Layout(blocks)


def shard_rows(layout: Layout, n_items: int, settings: NodeSettings, round_: int) -> IntArray | None:
    """The rows of a round, rising; None where everything fits."""
    limit = settings.shard_parameters
    if limit is None or layout.size <= limit:
        return None
    tables = [spec for spec in layout.blocks.values() if spec.shape[0] == n_items and not spec.symmetric]
    per_row = sum(spec.size // n_items for spec in tables)
    rest = layout.size - per_row * n_items
    count = max(1, min(n_items, (limit - rest) // max(per_row, 1)))
    draws = user_keys(key(settings.seed, Purpose.SHARD, round_), np.arange(n_items, dtype=np.int64))
    return np.sort(np.argsort(draws, kind="stable")[:count]).astype(np.int64)


def keep_outside(layout: Layout, n_items: int, before: State, after: State) -> State:
    """`after` with every row that was not sent as it was before, in tables and in what an optimiser keeps of them."""
    rows = next((spec.rows for spec in layout.blocks.values() if spec.rows is not None), None)
    if rows is None:
        return after
    kept = dict(after)
    for name, values in after.items():
        if values.ndim and len(values) == n_items and name in before:
            merged = before[name].astype(values.dtype, copy=True)
            merged[rows] = values[rows]
            kept[name] = merged
    return kept
