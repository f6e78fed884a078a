"""Large item tables: in each round everyone sends the same random part of the rows, whole, and nothing else.

Which rows a user touches tells what the user likes, so rows are never chosen by a user. The part is drawn from the
run's public seed and the round, and is the same on all devices; over the rounds every row has its turns. Updates are
computed and clipped whole, and a part of a vector is no longer than the vector, so bounds and noise stay as planned.
Only models whose update is a gradient can be sent in parts: to them a row that is not sent means "no step". Models
in closed form solve each row from its sums and are sent whole.

Letters: I items. Out of scope: hiding what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedrec.core.errors import ProtocolError
from fedrec.core.interactions import IntArray
from fedrec.core.messages import Scalar
from fedrec.core.randomness import Purpose, key, user_keys
from fedrec.core.stage import RoundContext, Stage
from fedrec.core.updates import Layout, State, UpdateSum
from fedrec.rounds.compression import choose_rows, note_rows, rows_count


@dataclass(frozen=True)
class Shard(Stage):
    """A part of the rows of all item tables, drawn from the public seed, where the whole does not fit.

    Attributes:
        most: values that are sent at most.
    """

    name = "shard"

    most: int = 1

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """The layout with the rows of the round; a part of a vector is no longer than the vector."""
        return with_rows(
            layout,
            context.n_items,
            shard_rows(layout, context.n_items, self.most, context.seed, context.round),
        )


@dataclass(frozen=True)
class Rows(Stage):
    """The rows that the server names: by the sums it has seen, those in which most has been waiting longest.

    Its state on the server is [I] how fast each row moves, and [I] the round in which it was sent last.

    Attributes:
        part: of the rows that is sent in a round.
    """

    name = "rows"

    part: float = 1.0

    def announce(self, context: RoundContext, state: State) -> Scalar | None:
        """The rows of the round, one bit per item."""
        return spell_rows(choose_rows(state, context.n_items, self.part, context.round), context.n_items)

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """The layout with the rows that were announced."""
        rows = read_rows(context.announced.get(self.name), context.n_items, self.part)
        return with_rows(layout, context.n_items, rows)

    def on_server(self, total: UpdateSum, context: RoundContext, state: State) -> tuple[UpdateSum, State]:
        """The sum itself, and what it tells of its rows; a sum over no users tells nothing."""
        if not total.users:
            return total, state
        rows = read_rows(context.announced.get(self.name), context.n_items, self.part)
        return total, note_rows(state, total, context.n_items, rows, context.round)


def with_rows(layout: Layout, n_items: int, rows: IntArray | None) -> Layout:
    """The layout of which some rows of every item table are sent; None: all."""
    if rows is None:
        return layout
    return Layout(
        {
            name: replace(spec, rows=rows) if spec.is_table(n_items) else spec
            for name, spec in layout.blocks.items()
        }
    )


def spell_rows(rows: IntArray, n_items: int) -> str:
    """Rows for a request: one bit per item, in hex."""
    chosen = np.zeros(n_items, dtype=bool)
    chosen[rows] = True
    return np.packbits(chosen).tobytes().hex()


def read_rows(spelt: object, n_items: int, part: float) -> IntArray:
    """Rows that came with a request, rising.

    Args:
        spelt: as `spell_rows` gave them.
        n_items: I.
        part: of the rows that is sent in a round.

    Raises:
        ProtocolError: not as many as the part says.
    """
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


def shard_rows(layout: Layout, n_items: int, most: int, seed: int, round_: int) -> IntArray | None:
    """The rows of a round, rising; None where everything fits."""
    if layout.size <= most:
        return None
    tables = [spec for spec in layout.blocks.values() if spec.is_table(n_items)]
    if not tables:
        return None
    per_row = sum(spec.size // n_items for spec in tables)
    rest = layout.size - per_row * n_items
    count = max(1, min(n_items, (most - rest) // max(per_row, 1)))
    draws = user_keys(key(seed, Purpose.SHARD, round_), np.arange(n_items, dtype=np.int64))
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
