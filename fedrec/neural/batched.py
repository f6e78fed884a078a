"""The generic path: any torch loss trained for many users at once, each on its own copies.

Every user of a chunk owns a copy of the rows it touches, of the dense parameters and of its local state. One forward
pass gives a loss per user; because nothing is shared, the gradient of their sum holds each user's own gradient, so
one backward pass serves the chunk. Until a user has made a step its copy is a view of the common parameters, which
costs nothing; with one step a round (federated SGD) no parameter is ever copied.

Letters: K users of a chunk, S rows of the item tables (padded to the most of the chunk, or all I), d embedding size.
Out of scope: which loss (models), clipping and summing (`local_training`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.core.updates import Dense, Rows, State, Updates
from fedrec.neural.device_optimizer import DeviceOptimizer, Stepper

#: Every parameter of K users, [K, ...]; tables are [K, S, ...].
Params = dict[str, Tensor]


class Work(Protocol):
    """What K users do in one round."""

    @property
    def steps(self) -> int:
        """Minibatches of the user who has most of them."""

    @property
    def examples(self) -> NDArray[np.float64]:
        """[K] examples behind each user's loss."""

    def loss(self, params: Params, step: int) -> Tensor:
        """[K] loss of each user on its minibatch."""

    def active(self, step: int) -> Tensor | None:
        """[K] 1 for users who have a minibatch in this step; None: all."""


@dataclass(frozen=True)
class Touched:
    """Rows of the item tables that each user touches, ragged: user u has `row[ptr[u]:ptr[u+1]]`, each once."""

    ptr: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def width(self) -> int:
        """S, the most rows of one user."""
        return int(np.diff(self.ptr).max(initial=1))

    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[K, S] rows (0 where there is none), and which are real."""
        counts = np.diff(self.ptr)
        real = np.arange(self.width) < counts[:, None]
        rows = np.zeros(real.shape, dtype=np.int64)
        rows[real] = self.row
        return rows, real


def train_batched(
    work: Work,
    rule: DeviceOptimizer | Stepper,
    tables: State,
    dense: State,
    local: State,
    touched: Touched | None,
    corrections: Params | None = None,
    *,
    learns: Literal["all", "shared", "local"] = "all",
) -> tuple[Updates, State]:
    """Updates (change of the touched rows and of the dense parameters) and new local state of K users.

    Args:
        work: minibatches and loss.
        rule: the step on the device; a stepper goes on with the moments it has.
        tables: shared arrays [I, ...] of which a user sees rows.
        dense: shared arrays that every user sees whole.
        local: arrays [K, ...].
        touched: which rows; None: all of them, for losses over the whole catalogue.
        corrections: [K, ...] added to the gradients (control variates); None: none.
        learns: what moves; the rest stays as it is.
    """
    n_users = len(work.examples)
    start = views(tables, dense, local, touched, n_users)
    common = frozenset((*tables, *dense))
    stepper = rule if isinstance(rule, Stepper) else Stepper(rule, common)
    learning = {"all": frozenset(start), "shared": common, "local": frozenset(local)}[learns]
    delta, loss = _train(work, stepper, start, learning, corrections or {}, n_users)
    blocks: dict[str, Rows | Dense] = {}
    for name in tables:
        blocks[name] = _table_block(delta[name].numpy(), touched)
    for name in dense:
        blocks[name] = Dense(delta[name].numpy())
    after = {name: values + delta[name].numpy() for name, values in local.items()}
    return Updates(blocks, n_users, loss, work.examples), after


def views(tables: State, dense: State, local: State, touched: Touched | None, n_users: int) -> Params:
    """Everyone's parameters [K, ...]: common ones as views, touched rows as copies."""

    def shared(values: NDArray[np.generic]) -> Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return whole.expand(n_users, *whole.shape)

    if touched is None:
        params = {name: shared(values) for name, values in tables.items()}
    else:
        rows, real = touched.padded()
        params = {}
        for name, values in tables.items():
            # Padding must stay zero: it may lie where no one has looked.
            picked = np.zeros((*rows.shape, *values.shape[1:]), dtype=np.float32)
            picked[real] = values[rows[real]]
            params[name] = torch.from_numpy(picked)
    params |= {name: shared(values) for name, values in dense.items()}
    return params | {name: torch.from_numpy(values.astype(np.float32)) for name, values in local.items()}


def _train(
    work: Work, stepper: Stepper, start: Params, learning: frozenset[str], corrections: Params, n_users: int
) -> tuple[Params, NDArray[np.float64]]:
    """Change of every parameter, and the loss [K] summed over the steps."""
    total = np.zeros(n_users)
    delta: Params = {}
    for step in range(work.steps):
        leaves = {
            name: (start[name] + delta[name] if name in delta else start[name]).detach().requires_grad_()
            for name in learning
        }
        losses = work.loss(start | leaves, step)
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        found = _apart({name: g for name, g in zip(leaves, gradients, strict=True) if g is not None})
        with torch.no_grad():
            for name, correction in corrections.items():
                found[name] = found[name] + correction if name in found else correction.clone()
            stepper.step(delta, found, work.active(step))
        total += losses.detach().double().numpy()
    # Zeros for what has not moved take no memory.
    still = {
        name: torch.zeros(()).expand(values.shape) for name, values in start.items() if name not in delta
    }
    return delta | still, total


def _apart(gradients: Params) -> Params:
    """The same, each in memory of its own: autograd may give one tensor to two parameters, or a view of a number."""
    seen, out = set[int](), {}
    for name, gradient in gradients.items():
        place = gradient.untyped_storage().data_ptr()
        apart = place not in seen and gradient.is_contiguous()
        out[name] = gradient if apart else gradient.clone(memory_format=torch.contiguous_format)
        seen.add(place)
    return out


def _table_block(delta: NDArray[np.float32], touched: Touched | None) -> Rows | Dense:
    if touched is None:
        return Dense(delta)
    _, real = touched.padded()
    return Rows(touched.ptr, touched.row, delta[real])
