"""Interaction-level differential privacy on the device: DP-SGD over one user's own interactions.

One example is one interaction with its sampled negatives. In each of T local steps every interaction joins by a
coin of fixed public probability, each example's gradient is clipped to C over user vector, rows and biases
together, and the sum over a *fixed public* expected batch size, plus noise, moves the table (Abadi et al. 2016,
arXiv 1607.00133). A step without examples is a step of noise.

Noise is lazy, and still exact. A row that no example reads has gradient zero, so dense DP-SGD over the whole table
would only add up its noise, and k steps of noise are one Gaussian of k times the variance. A row is therefore
brought up to date only before an example reads it and once at the end, which gives the distribution of the dense
algorithm at the cost of the rows in use (the idea of LazyDP, Lim et al. 2024, arXiv 2404.08847). In the end every
value of every row carries the same T steps of noise, so that touched rows do not stand out by their noise.

The user's own vector is inside DP-SGD although it never leaves the device: it persists, and through it what it
learned from an interaction in one round would reach the rows of the next one unbounded.

What is protected is one interaction, and only that: `user_epsilon` says what it means for a whole user.
Adjacency: one interaction's contribution is zeroed out; its place among the newest `max_interactions` stays taken.
Out of scope: time and memory as side channels; torch and Opacus are imported when training starts.

Letters: U users, I items, B examples, S rows, T local steps, C clip norm, z noise multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused, ProtocolError
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.stage import Noise
from fedrec.core.threads import one_blas_thread
from fedrec.core.updates import State, UpdateSum
from fedrec.neural.example_gradients import DeviceModel, PublicKey, device_model_of
from fedrec.privacy.accounting import grouped_epsilon
from fedrec.privacy.noise import snap

if TYPE_CHECKING:
    from fedrec.privacy.plan import PrivacyPlan
    from fedrec.privacy.settings import InteractionPlan

#: Examples whose gradients are held at once: B x S x d numbers of at most B (1 + n) rows.
MICRO_BATCH = 32


def train_interactions(
    recommender: object,
    shared: State,
    local: State,
    batch: UserBatch,
    round_key: PublicKey,
    plan: PrivacyPlan,
    noise: Noise,
    n_items: int,
) -> tuple[UpdateSum, State]:
    """Sum of the users' noised updates, ready to be sent, and their new (noised) local state.

    Args:
        recommender: one with per-example training (`DeviceModel`).
        shared: the broadcast tables, arrays [I, ...].
        local: arrays [U, ...] of the users of the batch.
        batch: their histories; only the newest `max_interactions` of each are used.
        round_key: seed and round, for the public draws.
        plan: of unit "interaction".
        noise: source of coins and noise of this node; its use is derived by round.
        n_items: I.

    Returns:
        The sum: loss, examples, clipped and norm stay 0, since nothing of them is noised; `noise_std` holds for
        every value of the sum. And the local state, in the types that came in.

    Raises:
        PrivacyRefused: the plan is of another unit, or the recommender's gradients cannot be bounded.
        ProtocolError: the broadcast tables have another shape or hold numbers that are not finite.
    """
    from fedrec.privacy._norm_check import verify_model

    model = device_model_of(recommender)
    rule = _Rule.of(plan, round_key.round, model.device_learning_rate)
    _check_shared(model, shared, n_items)
    verify_model(model, n_items)
    source = noise.derive("interactions", round_key.round)
    total = UpdateSum(model.layout(n_items).zeros(), users=len(batch))
    missing = np.zeros(n_items)
    after = {name: values.copy() for name, values in local.items()}
    with one_blas_thread():
        for u in range(len(batch)):
            mine = {name: values[u : u + 1].astype(np.float64) for name, values in local.items()}
            device = _Device(model, shared, mine, rule, source)
            device.train(_newest(batch, u, rule.limits), int(batch.user[u]), round_key, n_items)
            missing += rule.limits.local_steps
            missing[device.rows] -= device.steps_of_noise
            for name, values in total.blocks.items():
                values[device.rows] += device.deltas[name]
            for name, values in device.local.items():
                after[name][u] = values[0]
    _finish(total, missing, rule, source)
    return total, after


def released_noise_std(plan: PrivacyPlan, round_: int, learning_rate: float, users: int = 1) -> float:
    """Standard deviation of the noise on every value of a sum over `users` updates."""
    return _Rule.of(plan, round_, learning_rate).std * math.sqrt(users * _limits(plan).local_steps)


def user_epsilon(plan: PrivacyPlan, rounds: int | None = None) -> float:
    """What the plan protects of a whole user: epsilon at the plan's delta, all interactions of the user removed.

    An upper bound: the user takes part in every round, has `max_interactions`, and every round has the least noise
    of the schedule. The interactions of a user share their batches, so this is far above the plan's own epsilon,
    which is about a single one of them.
    """
    limits, multipliers = _limits(plan), plan.noise_multipliers[:rounds]
    if not multipliers:
        return 0.0
    steps = limits.local_steps * len(multipliers)
    most = limits.max_interactions
    return grouped_epsilon(min(multipliers), limits.batch_rate, steps, most, plan.delta)


@dataclass(frozen=True)
class _Rule:
    """Numbers of one round, all public. `step` turns a sum of gradients into a move; `std` is of one step's noise."""

    limits: InteractionPlan
    clip_norm: float
    step: float
    std: float

    @classmethod
    def of(cls, plan: PrivacyPlan, round_: int, learning_rate: float) -> _Rule:
        limits = _limits(plan)
        step = learning_rate / limits.expected_batch
        return cls(limits, plan.clip_norm, step, step * plan.noise_multipliers[round_ - 1] * plan.clip_norm)


class _Device:
    """One user's DP-SGD.

    Attributes:
        rows: [S] the rows that some example of the round reads, sorted.
        deltas: arrays [S, ...], how far each row has moved. Kept apart from the broadcast values: the last digits of
            a difference of two tables would tell which rows were moved.
        steps_of_noise: [S] how many steps of noise the deltas hold so far.
        local: arrays [1, ...], up to date after every step.
    """

    def __init__(self, model: DeviceModel, shared: State, local: State, rule: _Rule, noise: Noise) -> None:
        self._model, self._shared, self._rule, self._noise = model, shared, rule, noise
        self.local = local
        self.rows: IntArray = np.zeros(0, dtype=np.int64)
        self.steps_of_noise: IntArray = np.zeros(0, dtype=np.int64)
        self.deltas: State = {}

    def train(self, item: IntArray, user: int, round_key: PublicKey, n_items: int) -> None:
        """All steps of the round over the user's interactions `item`."""
        limits = self._rule.limits
        coins = self._noise.bernoulli(limits.batch_rate, limits.local_steps * len(item))
        joins = np.asarray(coins, dtype=bool).reshape(limits.local_steps, len(item))
        examples = [
            self._model.device_rows(item[chosen], user, step, round_key, n_items)
            for step, chosen in enumerate(joins)
        ]
        self.rows = np.unique(np.concatenate([each.reshape(-1) for each in examples]))
        self.steps_of_noise = np.zeros(len(self.rows), dtype=np.int64)
        self.deltas = {
            name: np.zeros((len(self.rows), *self._shared[name].shape[1:]))
            for name in self._model.layout(n_items).blocks
        }
        for step, each in enumerate(examples):
            self._descend(step, np.searchsorted(self.rows, each))

    def _descend(self, step: int, slots: IntArray) -> None:
        """One step; slots [B, 1+n] are positions in `rows`."""
        self._bring_up_to_date(np.unique(slots), step)
        # All sums of a step come before its first move: they are gradients at the same point.
        sums = [self._clipped(part) for part in _micro_batches(slots)]
        for here, row_sums, local_sums in sums:
            for name, values in row_sums.items():
                self.deltas[name][here] -= self._rule.step * values
            for name, values in local_sums.items():
                self.local[name] -= self._rule.step * values
        for values in self.local.values():
            values += self._noise.normal(values.size, self._rule.std).reshape(values.shape)

    def _clipped(self, slots: IntArray) -> tuple[IntArray, State, State]:
        """Sums of clipped gradients of some examples, and the positions of the rows that they are for."""
        import torch

        from fedrec.privacy._example_gradients import sum_clipped

        here, inverse = np.unique(slots, return_inverse=True)
        rows = {
            name: self._shared[name][self.rows[here]] + delta[here] for name, delta in self.deltas.items()
        }
        module = self._model.device_module(rows, self.local)
        sum_clipped(module, torch.from_numpy(inverse.reshape(slots.shape)), self._rule.clip_norm)
        return here, *self._model.device_gradients(module, "summed_grad")

    def _bring_up_to_date(self, here: IntArray, step: int) -> None:
        """Give the rows at `here` the noise of all steps before `step` that they do not have yet."""
        behind = here[self.steps_of_noise[here] < step]
        std = np.sqrt(step - self.steps_of_noise[behind]) * self._rule.std
        for values in self.deltas.values():
            values[behind] += _scaled(self._noise, (len(behind), *values.shape[1:]), std)
        self.steps_of_noise[here] = step


def _finish(total: UpdateSum, missing: NDArray[np.float64], rule: _Rule, noise: Noise) -> None:
    """Add the noise that the rows still lack, in one draw for all users, and round everything to one grid."""
    total.noise_std = rule.std * math.sqrt(total.users * rule.limits.local_steps)
    for name, values in total.blocks.items():
        values += _scaled(noise, values.shape, np.sqrt(missing) * rule.std)
        if total.noise_std > 0:
            total.blocks[name] = snap(values, total.noise_std)


def _scaled(noise: Noise, shape: tuple[int, ...], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal noise of the given shape, row r with standard deviation std[r]."""
    drawn = noise.normal(math.prod(shape), 1.0).reshape(shape)
    return np.asarray(drawn * std.reshape(-1, *[1] * (len(shape) - 1)))


def _micro_batches(slots: IntArray) -> Iterator[IntArray]:
    for start in range(0, len(slots), MICRO_BATCH):
        yield slots[start : start + MICRO_BATCH]


def _newest(batch: UserBatch, u: int, limits: InteractionPlan) -> IntArray:
    first, last = int(batch.indptr[u]), int(batch.indptr[u + 1])
    return batch.item[max(first, last - limits.max_interactions) : last]


def _limits(plan: PrivacyPlan) -> InteractionPlan:
    if plan.unit != "interaction" or plan.interaction is None:
        raise PrivacyRefused(
            f"plan of unit {plan.unit!r}: expected unit 'interaction' for training by per-example gradients; "
            "set privacy.unit"
        )
    return plan.interaction


def _check_shared(model: DeviceModel, shared: State, n_items: int) -> None:
    for name, spec in model.layout(n_items).blocks.items():
        if spec.symmetric or not spec.shape or spec.shape[0] != n_items:
            raise PrivacyRefused(
                f"block {name!r} of shape {spec.shape}: expected one row per item ({n_items})"
            )
        if shared[name].shape != spec.shape or not np.isfinite(shared[name]).all():
            raise ProtocolError(f"broadcast {name!r}: expected finite numbers of shape {spec.shape}")
