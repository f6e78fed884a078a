"""How clipped sums become a release: one small object, the same on nodes, coordinator, in audits and in sweeps.

A node calls `contribute` on the sum of its users' clipped updates, contributions are `add`ed, and `release` gives
the vector that everything after it is computed from. Which of them holds the noise depends on who is trusted:

    central      contribute: the sum as it is       release: adds all the noise; the coordinator sees clean sums
    distributed  contribute: integers and a share   release: decodes; no one sees a sum without noise
                 of the noise for each user
    local        contribute: full noise for each    release: nothing to do
                 user
    interaction  the node trained with noise        release: nothing to do

P is the length of the flat vector; with adaptive clipping its last value is the sum of (unclipped - 1/2) over the
users, which is noised on its own terms.

Out of scope: clipping, what the noise is worth (`plan`, `accounting`), and booking it before the release (`ledger`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan

Floats = NDArray[np.float64]

#: What a node sends: float64 values or, distributed, int64 residues modulo 2^bits.
Contribution = NDArray[Any]


class Mechanism(Protocol):
    """How clipped sums become a release."""

    @property
    def plan(self) -> PrivacyPlan:
        """What this mechanism carries out."""

    def contribute(
        self, vector: Floats, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Contribution:
        """[P] what a node sends for its cohort users.

        Args:
            vector: [P] sum of the users' updates, each clipped to `clip_norm`.
            users: how many of the cohort are in it, those with a zero contribution included.
            round_: from 1.
            clip_norm: C of this round.
            noise: the node's own source.

        Raises:
            PrivacyRefused: settings that are not the plan's; never because of the values.
        """

    def zero(self, size: int) -> Contribution:
        """The neutral element of `add`, for vectors of `size` values."""

    def add(self, total: Contribution, contribution: Contribution) -> Contribution:
        """[P] their sum; neither is changed."""

    def release(
        self, total: Contribution, users: int, round_: int, clip_norm: float, noise: NoiseSource
    ) -> Floats:
        """The noised sum in the first P values; distributed integers may leave noise behind them.

        Args:
            total: sum of contributions, possibly none.
            users: how many users are in it.
            round_: from 1.
            clip_norm: C of this round.
            noise: the coordinator's source.

        Raises:
            PrivacyRefused: the noise in it is less than planned, or it is not finite; nothing may be released.
        """


def contribution(vector: Contribution, users: int) -> Floats:
    """[P] what a node's users give, as float64: zero where it is not finite, or where no user is behind it.

    A node's answer must not depend on data in any other way than by its values, so nothing is refused here.
    """
    values = np.asarray(vector, dtype=np.float64).reshape(-1)
    return np.where(np.isfinite(values) & (users > 0), values, 0.0)


def checked(vector: Contribution, users: int) -> Floats:
    """The sum that is to be released, as float64 [P]; for the coordinator.

    Raises:
        PrivacyRefused: it is not one finite vector, or no user is behind it.
    """
    values = np.asarray(vector, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise PrivacyRefused(
            f"sum of updates of shape {values.shape}: expected one vector of finite numbers; nothing was released"
        )
    if users < 0 or (users == 0 and values.any()):
        raise PrivacyRefused(
            f"sum of updates of {users} users is not zero: expected the number of users in it"
        )
    return values
