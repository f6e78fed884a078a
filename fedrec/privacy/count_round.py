"""A count round: how many users have each item, noisy, so that only items of several users need to be sent later.

Every user counts once for each of at most L items, so one user moves the histogram by sqrt(L) in L2 and L in L1.
Nodes add Skellam noise, a share for each user, and the integers are summed by secure aggregation like any other: with
a fresh attempt, whose keys and seeds have nothing to do with those of the rounds that follow. What may be sent
afterwards are the items whose noisy count is over a floor, the same for everyone; they are public from then on.

The floor is on the true count: an item of fewer than `floor` users passes with a chance of at most 1e-6, by
Bernstein's bound for the noise, P(noise >= t) <= exp(-t^2 / (2 (v + t / 3))), v its variance. Out of scope: when it
is asked for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.kernels import last_of_each
from fedrec.privacy._releases import SkellamRelease
from fedrec.privacy.accounting import calibrate
from fedrec.privacy.noise import NoiseSource

#: Rows of fewer users are never let through on purpose.
SMALLEST_FLOOR = 5
#: Chance that a row below the floor passes.
PASSES = 1e-6


class CountRound(BaseModel):
    """One noisy histogram.

    Attributes:
        max_items: L, newest distinct items of a user that count.
        noise_multiplier: z, standard deviation of the noise over sqrt(L).
        users: fewest users whose shares make up the noise.
        floor: fewest users of an item that is let through.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_items: int = Field(ge=1)
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)
    users: int = Field(ge=1)
    floor: int = Field(default=SMALLEST_FLOOR, ge=SMALLEST_FLOOR)

    @property
    def variance(self) -> float:
        """Of the noise on each count, when exactly `users` users answer."""
        return self.noise_multiplier**2 * self.max_items

    def release(self) -> SkellamRelease:
        """For the accountant: it adds up with whatever else the run releases."""
        return SkellamRelease(math.sqrt(self.max_items), float(self.max_items), self.variance)

    @property
    def threshold(self) -> float:
        """Noisy counts above it are let through: the floor, less one, plus what the noise may add."""
        log = math.log(1.0 / PASSES)
        return self.floor - 1 + log / 3 + math.sqrt((log / 3) ** 2 + 2 * self.variance * log)


def count_round(
    epsilon: float, delta: float, *, max_items: int, users: int, floor: int = SMALLEST_FLOOR
) -> CountRound:
    """The count round that costs epsilon at delta.

    Args:
        epsilon, delta: per user.
        max_items: L.
        users: fewest users that must answer.
        floor: at least 5.

    Raises:
        ConfigError: a floor below 5, or numbers out of range.
    """
    if floor < SMALLEST_FLOOR:
        raise ConfigError(f"row floor is {floor}: expected at least {SMALLEST_FLOOR}")
    if max_items < 1 or users < 1:
        raise ConfigError(f"max_items {max_items} and users {users}: expected at least 1 of each")

    def made(z: float) -> CountRound:
        return CountRound(max_items=max_items, noise_multiplier=max(z, 1e-9), users=users, floor=floor)

    return made(calibrate(lambda z: [made(z).release()], epsilon, delta, "rdp"))


def contribution(round_: CountRound, batch: UserBatch, n_items: int, noise: NoiseSource) -> NDArray[np.int64]:
    """[I] what a node adds to the sum: the counts of its users, and a share of the noise for each.

    Args:
        round_: see there.
        batch: histories, oldest first; items that a user has twice count once.
        n_items: I.
        noise: of the node.
    """
    mask = np.empty(len(batch.item), dtype=np.bool_)
    last_of_each(batch.indptr, batch.item, n_items, mask)
    # Newest first among the distinct ones.
    later = np.cumsum(mask[::-1])[::-1]
    after = np.append(later, 0)[batch.indptr[1:]]
    rank = later - np.repeat(after, batch.counts)
    counts = np.bincount(batch.item[mask & (rank <= round_.max_items)], minlength=n_items).astype(np.int64)
    return np.asarray(counts + noise.skellam(n_items, len(batch) * round_.variance / round_.users))


def rows_over(round_: CountRound, counts: NDArray[np.int64], users: int) -> IntArray:
    """Items, rising, whose noisy count is over the threshold; none when fewer users came than the noise needs.

    Args:
        round_: see there.
        counts: [I] the sum of contributions.
        users: how many are in it.
    """
    if users < round_.users:
        return np.zeros(0, dtype=np.int64)
    # More users than planned bring more noise; the threshold is for what is in it.
    present = round_.model_copy(
        update={"noise_multiplier": round_.noise_multiplier * math.sqrt(users / round_.users)}
    )
    return np.flatnonzero(counts > present.threshold).astype(np.int64)
