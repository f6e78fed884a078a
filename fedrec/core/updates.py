"""Updates: what each user contributes, as named blocks that flatten into one vector and are only ever summed.

A block may be held in a compact form (rows, a rank-one matrix) because it is *computed* sparsely; its meaning
is always the dense vector of the `Layout`, and that is what is clipped, counted in bytes and sent.

Letters: U users of a batch, I items, d embedding size, N touched rows over all users.
Out of scope: what the numbers mean (models) and noise (privacy).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError
from fedrec.core.kernels import add_dense, add_rows, add_scalars, gram_into, squared_row_norms

#: Named arrays; which ones there are is the recommender's business.
State = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BlockSpec:
    """Shape of one block of the vector.

    Attributes:
        shape: the full shape.
        symmetric: the last two axes form a symmetric matrix; only its upper triangle is sent and clipped.
        rows: which rows are sent, rising; the others are zero where they arrive. None: all of them.
        basis: [d, r], orthonormal columns: of a row [d] its product with it is sent. None: the row.
    """

    shape: tuple[int, ...]
    symmetric: bool = False
    rows: NDArray[np.int64] | None = field(default=None, compare=False)
    basis: Floats | None = field(default=None, compare=False)

    def is_table(self, n_items: int) -> bool:
        """Whether it has a row for each of so many items."""
        return self.shape[:1] == (n_items,) and not self.symmetric

    @property
    def size(self) -> int:
        """Number of values that are sent."""
        if self.rows is not None or self.basis is not None:
            rows = self.shape[0] if self.rows is None else len(self.rows)
            return rows * (prod(self.shape[1:]) if self.basis is None else self.basis.shape[1])
        if not self.symmetric:
            return prod(self.shape)
        n = self.shape[-1]
        return prod(self.shape[:-2]) * (n * (n + 1) // 2)

    def pack(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The sent values of a full array, flat."""
        if self.rows is not None:
            values = values[self.rows]
        if self.basis is not None:
            values = values @ self.basis
        if not self.symmetric:
            return values.reshape(-1)
        rows, columns = np.triu_indices(self.shape[-1])
        return values[..., rows, columns].reshape(-1)

    def unpack(self, flat: NDArray[np.floating]) -> NDArray[np.floating]:
        """The full array of the sent values."""
        if self.basis is not None:
            flat = (flat.reshape(-1, self.basis.shape[1]) @ self.basis.T).astype(flat.dtype, copy=False)
        if self.rows is not None:
            table = np.zeros(self.shape, dtype=flat.dtype)
            table[self.rows] = flat.reshape(len(self.rows), *self.shape[1:])
            return table
        if not self.symmetric:
            return flat.reshape(self.shape)
        n = self.shape[-1]
        rows, columns = np.triu_indices(n)
        full = np.zeros(self.shape, dtype=flat.dtype)
        packed = flat.reshape(*self.shape[:-2], -1)
        full[..., rows, columns] = packed
        full[..., columns, rows] = packed
        return full


@dataclass(frozen=True)
class Layout:
    """Names and shapes of all blocks, in the order in which they are sent."""

    blocks: Mapping[str, BlockSpec]

    @property
    def size(self) -> int:
        """Number of values in the flat vector."""
        return sum(spec.size for spec in self.blocks.values())

    def zeros(self) -> dict[str, Floats]:
        """One float64 accumulator per block."""
        return {name: np.zeros(spec.shape) for name, spec in self.blocks.items()}

    def flatten(self, blocks: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
        """[size] the vector that is sent."""
        return np.concatenate([spec.pack(blocks[name]) for name, spec in self.blocks.items()])

    def unflatten(self, flat: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """The blocks of a flat vector.

        Raises:
            ProtocolError: the vector has another length than the layout.
        """
        if flat.shape != (self.size,):
            raise ProtocolError(
                f"update of shape {flat.shape}: expected ({self.size},); the node runs another model"
            )
        out, start = {}, 0
        for name, spec in self.blocks.items():
            out[name] = spec.unpack(flat[start : start + spec.size])
            start += spec.size
        return out


class Block(Protocol):
    """The contribution of each of U users to one block."""

    def squared_norms(self) -> Floats:
        """[U] squared L2 norm of what each user would send."""

    def add_into(self, total: Floats, scale: Floats) -> None:
        """Add every user's contribution times `scale` [U] to `total`; a scale of 0 leaves a user out, NaN or not."""


@dataclass(frozen=True)
class Dense:
    """values [U, *shape]."""

    values: NDArray[np.floating]
    symmetric: bool = False

    def squared_norms(self) -> Floats:  # noqa: D102
        values = self.values
        if self.symmetric:
            rows, columns = np.triu_indices(values.shape[-1])
            values = values[..., rows, columns]
        out = np.zeros(len(values))
        flat = np.ascontiguousarray(values.reshape(len(values), -1))
        squared_row_norms(np.arange(len(values) + 1), flat, out)
        return out

    def add_into(self, total: Floats, scale: Floats) -> None:  # noqa: D102
        flat = np.ascontiguousarray(self.values.reshape(len(self.values), -1))
        add_dense(total.reshape(-1), flat, scale)


@dataclass(frozen=True)
class Rows:
    """Some rows of a table: user u touches `row[indptr[u]:indptr[u+1]]` with `values` [N] or [N, d]."""

    indptr: NDArray[np.int64]
    row: NDArray[np.int64]
    values: NDArray[np.floating]

    def squared_norms(self) -> Floats:  # noqa: D102
        out = np.zeros(len(self.indptr) - 1)
        values = self.values[:, None] if self.values.ndim == 1 else self.values
        squared_row_norms(self.indptr, np.ascontiguousarray(values), out)
        return out

    def add_into(self, total: Floats, scale: Floats) -> None:  # noqa: D102
        if self.values.ndim == 1:
            add_scalars(total, self.indptr, self.row, self.values, scale)
        else:
            add_rows(total, self.indptr, self.row, self.values, scale)


@dataclass(frozen=True)
class Gram:
    """x xᵀ of a sparse vector x per user: the I x I block of closed-form item models (symmetric)."""

    indptr: NDArray[np.int64]
    item: NDArray[np.int64]
    x: NDArray[np.float64]

    def squared_norms(self) -> Floats:  # noqa: D102
        square = np.square(self.x)
        return (_segment_sums(square, self.indptr) ** 2 + _segment_sums(np.square(square), self.indptr)) / 2

    def add_into(self, total: Floats, scale: Floats) -> None:  # noqa: D102
        gram_into(total, self.indptr, self.item, self.x, scale)


@dataclass(frozen=True)
class Pairs:
    """Some cells of an I x I matrix per user: co-occurrences, transitions, what two items have in common.

    User u has the cells (`row[n]`, `column[n]`) for n in `indptr[u]:indptr[u+1]`, each once, with `values` [N]. In a
    symmetric block a cell stands for both of its mirror images and has row <= column.
    """

    indptr: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    values: NDArray[np.float64]
    symmetric: bool = False

    @classmethod
    def summed(
        cls,
        user: NDArray[np.int64],
        row: NDArray[np.int64],
        column: NDArray[np.int64],
        values: NDArray[np.float64],
        n_users: int,
        *,
        symmetric: bool = False,
    ) -> Pairs:
        """The block of entries in any order, each of a user 0..U-1; entries of one cell of a user add up.

        The norm of a sum is not that of its entries, so a cell must be there once.
        """
        if symmetric:
            row, column = np.minimum(row, column), np.maximum(row, column)
        width = 1 + max(int(row.max(initial=0)), int(column.max(initial=0)))
        cell, where = np.unique((user * width + row) * width + column, return_inverse=True)
        indptr = np.searchsorted(cell, np.arange(n_users + 1) * width**2)
        total = np.bincount(where, values, minlength=len(cell)).astype(np.float64)
        return cls(indptr.astype(np.int64), cell // width % width, cell % width, total, symmetric)

    def squared_norms(self) -> Floats:  # noqa: D102
        return _segment_sums(np.square(self.values), self.indptr)

    def add_into(self, total: Floats, scale: Floats) -> None:  # noqa: D102
        flat, width = total.reshape(-1), total.shape[-1]
        add_scalars(flat, self.indptr, self.row * width + self.column, self.values, scale)
        if self.symmetric:
            mirrored = np.where(self.row < self.column, self.values, 0.0)
            add_scalars(flat, self.indptr, self.column * width + self.row, mirrored, scale)


@dataclass(frozen=True)
class RowGram:
    """weight · f fᵀ in each touched row, f [U, d] one vector per user: the I x d x d block of iALS (symmetric)."""

    indptr: NDArray[np.int64]
    row: NDArray[np.int64]
    weight: NDArray[np.float64]
    factor: NDArray[np.float64]

    def squared_norms(self) -> Floats:  # noqa: D102
        square = np.square(self.factor)
        own = (square.sum(axis=1) ** 2 + np.square(square).sum(axis=1)) / 2
        return np.asarray(_segment_sums(np.square(self.weight), self.indptr) * own)

    def add_into(self, total: Floats, scale: Floats) -> None:  # noqa: D102
        user = np.repeat(np.arange(len(self.factor)), np.diff(self.indptr))
        order = np.argsort(self.row, kind="stable")
        order = order[scale[user[order]] != 0]
        if not len(order):
            return
        items, starts = np.unique(self.row[order], return_index=True)
        user, weight = user[order], (self.weight * scale[user])[order]
        for item, who, w in zip(items, np.split(user, starts[1:]), np.split(weight, starts[1:]), strict=True):
            vectors = self.factor[who]
            total[item] += vectors.T @ (vectors * w[:, None])


@dataclass(frozen=True)
class Updates:
    """The blocks of U users, with the training loss and the number of examples behind each."""

    blocks: Mapping[str, Block]
    n_users: int
    loss: Floats = field(default_factory=lambda: np.zeros(0))
    examples: Floats = field(default_factory=lambda: np.zeros(0))

    def norms(self) -> Floats:
        """[U] L2 norm of each user's whole update, over all blocks together."""
        return np.asarray(
            np.sqrt(sum((block.squared_norms() for block in self.blocks.values()), np.zeros(self.n_users)))
        )

    def add_into(self, totals: Mapping[str, Floats], scale: Floats) -> None:
        """Add every user's update times `scale` [U] to the accumulators of a layout."""
        if set(self.blocks) != set(totals):
            raise ProtocolError(f"update has blocks {sorted(self.blocks)}: expected {sorted(totals)}")
        for name, block in self.blocks.items():
            block.add_into(totals[name], scale)

    def vector(self, user: int, layout: Layout) -> Floats:
        """[layout.size] the flat update of one user, as a device would send it."""
        totals = layout.zeros()
        self.add_into(totals, np.eye(self.n_users)[user])
        return layout.flatten(totals).astype(np.float64)


#: A number of one user beyond it is taken for a failure of the computation.
LARGEST = 2.0**40
#: What is told of a sum beside its vector.
NUMBERS = ("users", "loss", "examples", "clipped", "norm", "zeroed")


@dataclass
class UpdateSum:
    """The sum of clipped updates over some users: all that a server ever learns from them.

    Attributes:
        blocks: one float64 array per block.
        users: number of users in the sum; in a noised sum the fixed denominator that stands for it.
        noise_std: standard deviation of the noise on every value of the flat vector; 0: none was added.
        loss, examples: summed over the users.
        clipped: how many updates were scaled down.
        norm: sum of the norms before clipping.
        zeroed: users whose update was not finite and counts as zero.
    """

    blocks: dict[str, Floats]
    users: float = 0
    loss: float = 0.0
    examples: float = 0.0
    clipped: int = 0
    norm: float = 0.0
    zeroed: int = 0
    noise_std: float = 0.0

    def merge(self, other: UpdateSum) -> None:
        """Add another sum of the same layout."""
        for name, values in other.blocks.items():
            self.blocks[name] += values
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def numbers(self) -> Iterator[tuple[str, float]]:
        """The scalar fields by name."""
        for name in NUMBERS:
            yield name, float(getattr(self, name))


def _segment_sums(values: Floats, indptr: NDArray[np.int64]) -> Floats:
    """[U] sums of consecutive segments, exact zero for empty ones."""
    owner = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.bincount(owner, values, minlength=len(indptr) - 1).astype(np.float64)


def finite(values: NDArray[Any]) -> float:
    """The sum of those values that are finite and below 2^40 in size; the others count as zero."""
    floats = np.asarray(values, dtype=np.float64)
    return float(floats[np.isfinite(floats) & (np.abs(floats) < LARGEST)].sum())
