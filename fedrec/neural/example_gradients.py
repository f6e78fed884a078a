"""What a recommender must say so that one device can train it by per-example gradients.

One example is one interaction with the rows it brings along (its sampled negatives). Which rows those are is a
function of the example's own item and of public keys, never of the user's other interactions: otherwise one
interaction would change the examples of the others, and bounding each example would bound nothing.

Letters: B examples, n negatives, S rows that a few examples touch, I items.
Out of scope: how gradients are clipped, noised and summed (`fedrec.privacy.interaction`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.core.interactions import IntArray
from fedrec.core.randomness import Purpose, absorb, bits, key
from fedrec.core.updates import Layout, State

if TYPE_CHECKING:
    from torch import nn


class PublicKey(Protocol):
    """Where public randomness of one round comes from (a `RoundSeed`)."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def round(self) -> int:
        """Round, from 1."""


@runtime_checkable
class DeviceModel(Protocol):
    """A recommender whose shared blocks are all tables with one row per item, trained by plain SGD."""

    @property
    def device_learning_rate(self) -> float:
        """Step size, of the sum of an example's gradients divided by the expected batch size."""

    def layout(self, n_items: int, round_: int = 1) -> Layout:
        """What one user sends in a round: here, tables with one row per item."""

    def init_local(self, users: IntArray, seed: int) -> State:
        """Personal state of the given user keys, every array [U, ...]."""

    def device_rows(self, item: IntArray, user: int, step: int, key: PublicKey, n_items: int) -> IntArray:
        """[B, 1+n] rows of the shared tables that each example touches, a row possibly more than once.

        Row b is a function of `item[b]` [B] and of (key, user, step) alone.
        """

    def device_module(self, rows: State, local: State) -> nn.Module:
        """Module whose parameters are `rows` (arrays [S, ...]) and `local` (one user's arrays, [1, ...]).

        `module(slots)` with slots [B, 1+n] int64, positions among the S rows, gives the loss of each example [B].
        Every parameter takes part through layers that Opacus knows; the check of `fedrec.privacy._norm_check`
        refuses a module for which its per-example gradients are wrong.
        """

    def device_gradients(self, module: nn.Module, attribute: str) -> tuple[State, State]:
        """The named attribute (such as "summed_grad") of all parameters, as (rows, local) like the module's."""


def device_model_of(recommender: object) -> DeviceModel:
    """The recommender as a device model.

    Raises:
        PrivacyRefused: it cannot be trained by per-example gradients.
    """
    if not isinstance(recommender, DeviceModel):
        kind = getattr(recommender, "kind", type(recommender).__name__)
        raise PrivacyRefused(
            f"recommender {kind!r} has no per-example training on the device: expected one that has for "
            "privacy unit 'interaction' (docs/reference/recommenders.md); take unit 'user' for this one"
        )
    return recommender


def uniform_rows(item: IntArray, user: int, step: int, key_: PublicKey, n_items: int, n: int) -> IntArray:
    """[B, 1+n] each item, then n rows drawn uniformly over *all* items by a hash of (key, user, step, item).

    The user's own items are not rejected: rejection would make one example depend on the others. The draw is keyed
    by the item, not by its position, so an interaction more or less leaves the examples of the others as they are.
    """
    state = np.full(len(item), key(key_.seed, Purpose.NEGATIVE, key_.round), dtype=np.uint64)
    for part in (np.full(len(item), user), np.full(len(item), step), item):
        state = absorb(state, part.astype(np.uint64))
    drawn = ((bits(state, n) >> np.uint64(32)) * np.uint64(n_items)) >> np.uint64(32)
    return np.concatenate([item[:, None], drawn.astype(np.int64)], axis=1)
