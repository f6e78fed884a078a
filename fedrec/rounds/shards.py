"""Large item tables: in each round everyone sends the same random part of the rows, whole, and nothing else.

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

from fedrec.core.errors import ProtocolError
from fedrec.core.interactions import IntArray
from fedrec.core.randomness import Purpose, key, user_keys
from fedrec.core.updates import Layout, State
from fedrec.rounds.compression import rows_count, sketched
from fedrec.rounds.settings import NodeSettings


def round_layout(
    layout: Layout,
    n_items: int,
    settings: NodeSettings,
    round_: int,
    *,
    gradient: bool,
    named: IntArray | None = None,
) -> Layout:
    """What is sent in a round: the layout itself, or one of some rows of every item table, whole or sketched.

    Args:
        layout: of the whole update.
        n_items: I, the first axis of item tables.
        settings: of the run; `shard_parameters` is the most values that are sent.
        round_: from 1.
        gradient: the update is a gradient.
        named: rows that the server has named, rising; None: the public seed draws them, where any are left out.
    """
    if not gradient:
        return layout
    rank = settings.compression.rank if settings.compression else None
    if rank is not None:
        layout = sketched(layout, n_items, rank, settings.seed, round_)
    rows = shard_rows(layout, n_items, settings, round_) if named is None else named
    if rows is None:
        return layout
    blocks = {
        name: replace(spec, rows=rows) if spec.is_table(n_items) else spec
        for name, spec in layout.blocks.items()
    }
    return Layout(blocks)


def spell_rows(rows: IntArray, n_items: int) -> str:
    """Rows for a request: one bit per item, in hex."""
    chosen = np.zeros(n_items, dtype=bool)
    chosen[rows] = True
    return np.packbits(chosen).tobytes().hex()


def read_rows(spelt: object, n_items: int, settings: NodeSettings) -> IntArray | None:
    """Rows that came with a request, rising; None where the run has none named.

    Raises:
        ProtocolError: not as many as the settings say.
    """
    part = settings.compression.rows if settings.compression else None
    if part is None:
        if spelt is not None:
            raise ProtocolError("request names rows: compression.rows is not set on this node")
        return None
    try:
        raw = np.frombuffer(bytes.fromhex(str(spelt)), dtype=np.uint8)
    except ValueError:
        raw = np.zeros(0, dtype=np.uint8)
    rows = np.flatnonzero(np.unpackbits(raw)).astype(np.int64)
    count = rows_count(n_items, part)
    if len(raw) != -(-n_items // 8) or len(rows) != count or rows[-1] >= n_items:
        raise ProtocolError(
            f"request names {len(rows)} rows: expected {count} of {n_items}, one bit for each"
        )
    return rows


def shard_rows(layout: Layout, n_items: int, settings: NodeSettings, round_: int) -> IntArray | None:
    """The rows of a round, rising; None where everything fits."""
    limit = settings.shard_parameters
    if limit is None or layout.size <= limit:
        return None
    tables = [spec for spec in layout.blocks.values() if spec.is_table(n_items)]
    if not tables:
        return None
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
