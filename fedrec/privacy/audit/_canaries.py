"""Canaries: planted users whose updates are known, so that an output can be asked whether they are in it.

M of them get directions in the flat vector that do not overlap: every value of the vector belongs to one canary, with
a random sign, and each canary has a share of every block that is large enough. All directions together take the
memory of one vector, one pass over an output scores them all, and canaries do not disturb each other (the random
directions of Andrew et al. 2023, arXiv 2302.03098, do so a little).

Letters: P values of the flat vector, M canaries.
Out of scope: clipping. Canaries are made far too long on purpose; the code under audit has to bound them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.updates import Block, BlockSpec, Layout, Updates

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Examples of every tenth canary, where the others have one: no weight may follow from them.
MANY = 50.0


@dataclass(frozen=True)
class Packed:
    """Some values of a block, at positions in its sent form: user u owns entries `indptr[u]:indptr[u+1]`."""

    spec: BlockSpec
    indptr: Ints
    position: Ints
    values: Floats

    def squared_norms(self) -> Floats:
        owner = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        return np.bincount(owner, np.square(self.values), minlength=len(self.indptr) - 1).astype(np.float64)

    def add_into(self, total: Floats, scale: Floats) -> None:
        factor = np.repeat(scale, np.diff(self.indptr))
        used = factor != 0
        position, values = self.position[used], self.values[used] * factor[used]
        if not self.spec.symmetric:
            np.add.at(total.reshape(-1), position, values)
            return
        n = self.spec.shape[-1]
        rows, columns = np.triu_indices(n)
        which, place = np.divmod(position, len(rows))
        row, column = rows[place], columns[place]
        squares = total.reshape(-1, n, n)
        np.add.at(squares, (which, row, column), values)
        off = row != column
        np.add.at(squares, (which[off], column[off], row[off]), values[off])


class Directions:
    """M unit vectors without overlap.

    Args:
        layout: of the vector.
        count: M, at most P.
        rng: where they come from.
    """

    def __init__(self, layout: Layout, count: int, rng: np.random.Generator) -> None:
        self.layout, self.count = layout, count
        self._owner = np.empty(layout.size, dtype=np.int64)
        self._value = np.where(rng.random(layout.size) < 0.5, -1.0, 1.0)
        blocks = np.zeros(count)
        for where, size in _places(layout):
            # Counting on from block to block leaves no canary without a value, however small the blocks are.
            owner = (where.start + rng.permutation(size)) % count
            have = np.bincount(owner, minlength=count)
            self._owner[where] = owner
            self._value[where] /= np.sqrt(have[owner])
            blocks += have > 0
        self._value /= np.sqrt(blocks[self._owner])

    def scores(self, output: Floats) -> Floats:
        """[M] inner products with an output [P]."""
        return np.bincount(self._owner, self._value * output, minlength=self.count).astype(np.float64)

    def updates(self, who: Ints, norm: float) -> Updates:
        """The updates of the canaries `who`, each of the given norm before clipping."""
        rank = np.full(self.count, -1)
        rank[who] = np.arange(len(who))
        blocks: dict[str, Block] = {}
        for (where, _), (name, spec) in zip(_places(self.layout), self.layout.blocks.items(), strict=True):
            owner = rank[self._owner[where]]
            order = np.argsort(owner, kind="stable")
            order = order[owner[order] >= 0]
            indptr = np.concatenate([[0], np.cumsum(np.bincount(owner[order], minlength=len(who)))])
            values = norm * self._value[where][order]
            blocks[name] = Packed(spec, indptr.astype(np.int64), order.astype(np.int64), values)
        examples = np.where(who % 10 == 0, MANY, 1.0)
        return Updates(blocks, len(who), np.zeros(len(who)), examples)


def stacked(layout: Layout, vectors: Floats, examples: Floats) -> Updates:
    """The updates of users whose flat vectors [U, P] are given, with their numbers of examples [U]."""
    users = len(vectors)
    blocks: dict[str, Block] = {}
    for (where, size), (name, spec) in zip(_places(layout), layout.blocks.items(), strict=True):
        indptr = np.arange(users + 1, dtype=np.int64) * size
        position = np.tile(np.arange(size, dtype=np.int64), users)
        blocks[name] = Packed(spec, indptr, position, vectors[:, where].reshape(-1))
    return Updates(blocks, users, np.zeros(users), examples)


def spread(layout: Layout, rng: np.random.Generator, block_norm: float) -> Floats:
    """[P] a random direction whose part in each block has the given norm."""
    out = rng.normal(size=layout.size)
    for where, size in _places(layout):
        if size:
            out[where] *= block_norm / np.linalg.norm(out[where])
    return out


def _places(layout: Layout) -> Iterator[tuple[slice, int]]:
    """Where each block stands in the flat vector, and how long it is."""
    start = 0
    for spec in layout.blocks.values():
        yield slice(start, start + spec.size), spec.size
        start += spec.size
