"""The generic path: any torch objective trained for many users at once, each on its own copies.

Every user of a chunk owns a copy of the rows it touches (padded to the longest), of the dense parameters and of
its local state. One forward pass gives a loss per user; because nothing is shared, the gradient of their sum is
each user's own gradient, so one backward pass serves the chunk. Plain SGD, minibatch by minibatch.

Letters: K users of a chunk, S rows (padded), B groups of a minibatch (padded), n negatives, d embedding size.
Out of scope: which objective (models), clipping and summing (`local_training`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.learning.updates import Dense, Rows, State, Updates
from fedrec.learning.views import LocalViews


@dataclass(frozen=True)
class Minibatch:
    """Examples of K users: every tensor in `rows` is [K, B, 1+n, ...], `mask` [K, B] is 1 for real groups."""

    rows: dict[str, Tensor]
    dense: dict[str, Tensor]
    local: dict[str, Tensor]
    mask: Tensor


class Objective(Protocol):
    """What a model must say to be trained here."""

    def __call__(self, minibatch: Minibatch) -> Tensor:
        """[K] loss of each user, summed over the real groups."""


@dataclass(frozen=True)
class LocalSgd:
    """How a user trains: minibatches of `batch_size` groups, step `learning_rate`."""

    learning_rate: float
    batch_size: int
    chunk_users: int = 8


def train_batched(
    objective: Objective, sgd: LocalSgd, tables: State, dense: State, local: State, views: LocalViews
) -> tuple[Updates, State]:
    """Updates (delta of the touched rows and of the dense parameters) and new local state of U users.

    Args:
        objective: loss of a minibatch.
        sgd: step size and shapes.
        tables: shared arrays [I, ...] of which a user sees rows.
        dense: shared arrays that every user sees whole.
        local: arrays [U, ...].
        views: what each user touches and in which order.
    """
    n_users = len(views.row_ptr) - 1
    deltas = {name: np.empty((len(views.row), *a.shape[1:]), dtype=np.float32) for name, a in tables.items()}
    dense_deltas = {name: np.empty((n_users, *a.shape), dtype=np.float32) for name, a in dense.items()}
    after = {name: a.copy() for name, a in local.items()}
    loss = np.zeros(n_users)
    by_length = np.argsort(np.diff(views.example_ptr), kind="stable")
    for start in range(0, n_users, sgd.chunk_users):
        users = by_length[start : start + sgd.chunk_users]
        chunk = _Chunk(users, views, tables, dense, local)
        loss[users] = chunk.train(objective, sgd)
        chunk.store(deltas, dense_deltas, after, tables, dense)
    blocks: dict[str, Rows | Dense] = {n: Rows(views.row_ptr, views.row, d) for n, d in deltas.items()}
    blocks |= {name: Dense(values) for name, values in dense_deltas.items()}
    examples = np.diff(views.example_ptr) * views.slot.shape[1]
    return Updates(blocks, n_users, loss, examples.astype(np.float64)), after


class _Chunk:
    """Copies of everything that K users train."""

    def __init__(
        self, users: NDArray[np.int64], views: LocalViews, tables: State, dense: State, local: State
    ) -> None:
        self._users, self._views = users, views
        counts = np.diff(views.row_ptr)[users]
        self._width = int(counts.max(initial=1))
        self._owner = np.repeat(np.arange(len(users)), counts)
        within = np.arange(len(self._owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._place = self._owner * self._width + within
        self._source = np.repeat(views.row_ptr[users], counts) + within
        self._rows = {name: self._pad(array) for name, array in tables.items()}
        copies = (len(users),)
        self._dense = {
            name: self._leaf(torch.from_numpy(np.broadcast_to(a, copies + a.shape).astype(np.float32)))
            for name, a in dense.items()
        }
        self._local = {
            name: self._leaf(torch.from_numpy(a[users].astype(np.float32))) for name, a in local.items()
        }

    def train(self, objective: Objective, sgd: LocalSgd) -> NDArray[np.float64]:
        """Run all minibatches; returns the loss of each user [K]."""
        first, last = self._views.example_ptr[self._users], self._views.example_ptr[self._users + 1]
        total = np.zeros(len(self._users))
        for step in range(0, int((last - first).max(initial=0)), sgd.batch_size):
            group = first[:, None] + step + np.arange(sgd.batch_size)
            mask = group < last[:, None]
            slots = self._views.slot[np.where(mask, group, 0)] * mask[:, :, None]
            flat = torch.from_numpy(slots + np.arange(len(self._users))[:, None, None] * self._width).view(-1)
            # Gradients stop at the gathered rows: a gradient of all rows would be dense, and mostly zero.
            rows = {name: self._leaf(table.index_select(0, flat)) for name, table in self._rows.items()}
            shaped = {name: leaf.view(*slots.shape, *leaf.shape[1:]) for name, leaf in rows.items()}
            loss = objective(
                Minibatch(shaped, self._dense, self._local, torch.from_numpy(mask.astype(np.float32)))
            )
            whole = [*self._dense.values(), *self._local.values()]
            gradients = torch.autograd.grad(loss.sum(), [*rows.values(), *whole])
            with torch.no_grad():
                for table, gradient in zip(self._rows.values(), gradients, strict=False):
                    table.index_add_(0, flat, gradient, alpha=-sgd.learning_rate)
                for leaf, gradient in zip(whole, gradients[len(rows) :], strict=True):
                    leaf.sub_(gradient, alpha=sgd.learning_rate)
            total += loss.detach().double().numpy()
        return total

    def store(self, deltas: State, dense_deltas: State, after: State, tables: State, dense: State) -> None:
        """Write what changed into the arrays of the whole batch."""
        rows = self._views.row[self._source]
        for name, leaf in self._rows.items():
            trained = leaf.numpy()[self._place]
            deltas[name][self._source] = trained - tables[name][rows]
        for name, leaf in self._dense.items():
            dense_deltas[name][self._users] = leaf.detach().numpy() - dense[name]
        for name, leaf in self._local.items():
            after[name][self._users] = leaf.detach().numpy()

    def _pad(self, array: NDArray[np.generic]) -> Tensor:
        padded = torch.zeros((len(self._users) * self._width, *array.shape[1:]), dtype=torch.float32)
        rows = np.ascontiguousarray(array[self._views.row[self._source]], dtype=np.float32)
        padded[torch.from_numpy(self._place)] = torch.from_numpy(rows)
        return padded

    @staticmethod
    def _leaf(tensor: Tensor) -> Tensor:
        return tensor.requires_grad_()
