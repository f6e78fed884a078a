"""One minibatch of the centralised baseline: the same work and loss as on the devices, on one copy of the parameters.

Letters: K users of a piece. Out of scope: the order of minibatches, and what the model is.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import Layout, State, UpdateSum
from fedrec.neural.batched import Params, Touched, Work
from fedrec.neural.device_optimizer import DeviceOptimizer, Stepper


class CentralModel(Protocol):
    """What a centralised step needs of a recommender that learns by gradients."""

    chunk_entries: ClassVar[int]
    chunk_users: ClassVar[int]

    @property
    def device(self) -> DeviceOptimizer:
        """The rule of the local steps."""

    def n_items(self, shared: State) -> int:
        """I."""

    def layout(self, n_items: int, round_: int = 1) -> Layout:
        """The parameters."""

    def split(self, shared: State) -> tuple[State, State]:
        """Tables with a row per item, and all other parameters."""

    def work(
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        """The loss of a batch, and the rows that it touches."""

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        """New shared and server state."""


def central_step(
    model: CentralModel,
    shared: State,
    server: State,
    local: State,
    rows: NDArray[np.int64],
    batch: UserBatch,
    key: RoundSeed,
) -> tuple[State, State]:
    """New shared and server state after every step of the minibatch; `local` [U, ...] changes in place.

    Args:
        model: what is trained.
        shared, server, local: states before.
        rows: which users of `local` the batch holds.
        batch: their histories.
        key: seed and epoch.
    """
    pieces = [
        (where, *model.work(piece, key, model.n_items(shared), shared))
        for where, piece in batch.chunks(model.chunk_entries, model.chunk_users)
    ]
    rule = model.device.at(key.round)
    steppers = {where.start: Stepper(rule, frozenset()) for where, _, _ in pieces}
    for step in range(max(work.steps for _, work, _ in pieces)):
        total = UpdateSum(model.layout(model.n_items(shared)).zeros(), users=len(batch))
        tables, dense = model.split(shared)
        for where, work, touched in pieces:
            if step >= work.steps:
                continue
            own = {name: values[rows[where]] for name, values in local.items()}
            gradients = _gradients(work, step, tables, dense, own, touched)
            for name in total.blocks:
                total.blocks[name] -= rule.learning_rate * gradients[name].double().numpy()
            moved = {name: torch.zeros(values.shape) for name, values in own.items()}
            steppers[where.start].step(moved, {name: gradients[name] for name in own}, work.active(step))
            for name, values in own.items():
                local[name][rows[where]] = values + moved[name].numpy()
        shared, server = model.apply(shared, server, total)
    return shared, server


def _gradients(
    work: Work, step: int, tables: State, dense: State, own: State, touched: Touched | None
) -> Params:
    """Of the summed loss, for every parameter; zero where it plays no part."""
    leaves = {
        name: torch.from_numpy(values).requires_grad_() for name, values in (tables | dense | own).items()
    }
    n_users = len(work.examples)
    params = {
        name: leaf if name in own else leaf.expand(n_users, *leaf.shape) for name, leaf in leaves.items()
    }
    if touched is not None:
        index = torch.from_numpy(touched.padded()[0])
        params |= {name: leaves[name][index] for name in tables}
    found = torch.autograd.grad(work.loss(params, step).sum(), list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
