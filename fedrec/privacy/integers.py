"""How sums are carried by integers, and what that costs: sensitivity after rounding, and room below the modulus.

Two cases. Distributed noise is made of integers (`Integers`): rounding changes the sensitivity, which is charged. The
clean sums of trust "central" may travel as integers under secure aggregation (`Carried`): the noise, added later,
then has to cover rounding too.

A rotation (`fedrec.secagg.rotation`) spreads a vector evenly over its coordinates, so that 16 bits hold sums that
would need 24 without: integers need room for sqrt(2 ln(2 n / p)) / sqrt(n) of the norm instead of all of it, but for
a chance p over the public signs. Where noise is in the integers, wrapping around is a wrong sum and no loss of
privacy, since taking residues is post-processing.

Letters: C clip norm, s scale, P parameters, n coordinates (P, or the padded size of a rotation).
"""

from __future__ import annotations

import hashlib
import math
import secrets
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.privacy.settings import PrivacySettings
from fedrec.secagg.rotation import Rotation, padded_size, tail

#: Rounding may enlarge the integer sensitivity by this part when the scale is chosen here and there is room.
ROUNDING_COST = 0.01
#: And by this part at most, where there is less.
MOST_ROUNDING_COST = 0.25
#: Of delta, what rounding may take over all rounds.
ROUNDING_DELTA = 1e-3
#: Chance per round that a rotated sum wraps around: a wrong sum, no loss of privacy.
WRAP_CHANCE = 1e-9
#: Standard deviations of noise for which there is room.
NOISE_TAILS = 8.0
#: Up to so many bits sums are rotated unless something else is said.
ROTATED_BITS = 20


class Integers(BaseModel):
    """How a distributed sum is carried by integers.

    Attributes:
        scale: integer steps per unit of the update.
        bits: sums are taken modulo 2^bits.
        survivors: part of the cohort that must reply.
        corrupted: part of the cohort that may reply without its share of noise, and tell the server so; shares are
            sized for the rest of the survivors, so that the noise of the honest ones is the planned noise.
        beta: probability, per round, that rounding moves a user's integers further than the sensitivity says.
        rotation_seed: public, of the rotations before rounding; None: no rotation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(gt=0)
    bits: int = Field(default=32, ge=8, le=48)
    survivors: float = Field(default=0.8, gt=0, le=1)
    corrupted: float = Field(default=0.0, ge=0, lt=1)
    beta: float = Field(gt=0, lt=1)
    rotation_seed: int | None = Field(default=None, ge=0, lt=2**53)

    @model_validator(mode="after")
    def _some_are_honest(self) -> Self:
        if self.corrupted >= self.survivors:
            raise ValueError(
                f"corrupted is {self.corrupted:g} and survivors is {self.survivors:g}: expected less, or no noise is "
                "left"
            )
        return self

    @property
    def honest(self) -> float:
        """Part of the cohort whose shares make up the planned noise."""
        return self.survivors - self.corrupted

    def coordinates(self, size: int) -> int:
        """n: how many integers carry `size` values."""
        return size if self.rotation_seed is None else padded_size(size)

    def rotation(self, size: int, round_: int) -> Rotation | None:
        """The rotation of a round's vectors of `size` values, the same on nodes and coordinator."""
        if self.rotation_seed is None:
            return None
        label = f"rotation {self.rotation_seed} {round_}".encode()
        return Rotation(size, int.from_bytes(hashlib.sha256(label).digest()[:8], "big"))

    def sensitivity(self, clip_norm: float, parameters: int) -> tuple[float, float]:
        """(L2, L1) of one user's rounded update, in integer units.

        Kairouz, Liu and Steinke 2021 (arXiv 2102.06387), proposition 26; integers satisfy L1 <= min(sqrt(n) L2, L2²).
        """
        n = self.coordinates(parameters)
        l2 = rounded_norm(clip_norm * self.scale, n, self.beta)
        return l2, max(l2, min(math.sqrt(n) * l2, l2 * l2))

    def needed(self, users: float, clip_norm: float, parameters: int, noise_std: float) -> float:
        """Integers between the least and the largest value of a sum of users at C in one direction.

        Args:
            users: whose updates are in it.
            clip_norm: C.
            parameters: P.
            noise_std: of the noise in the sum, in integer units.
        """
        reach, rounding = users * clip_norm * self.scale, users
        if self.rotation_seed is not None:
            n = self.coordinates(parameters)
            tails = tail(n, WRAP_CHANCE / 2.0)
            reach *= min(1.0, tails / math.sqrt(n))
            # Each user's node rounds by less than 1 either way; Hoeffding's bound for that many of them.
            rounding = min(users, tails * math.sqrt(users) / 2.0)
        return 2.0 * (reach + rounding + NOISE_TAILS * noise_std)


class Carried(BaseModel):
    """How the clean sums of trust "central" travel where only integers do.

    Attributes:
        scale: integer steps per unit of the update.
        wrap: chance, per sum, of wrapping around; 0 where integers have room for everyone. Noise comes after the
            sum here, so a neighbouring sum that wraps is not hidden: twice this is taken off delta in each round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(gt=0, allow_inf_nan=False)
    wrap: float = Field(default=0.0, ge=0, lt=1)

    def rounding(self, parameters: int) -> float:
        """By how much rounding lets one user's part of the sum exceed C, in units of the update.

        A node's sum is rounded with one dither per value, so leaving a user out moves each integer by less than 1
        beyond his own scaled update. n is that of a rotation, whether or not there is one.
        """
        return math.sqrt(padded_size(parameters)) / self.scale


def integers_of(settings: PrivacySettings, delta: float, rounds: int, parameters: int) -> Integers:
    """What settings ask for; a scale of None is chosen so that rounding costs little, whatever room there is."""
    rotate = settings.bits <= ROTATED_BITS if settings.rotate is None else settings.rotate
    found = Integers(
        scale=settings.scale or 1.0,
        bits=settings.bits,
        survivors=settings.survivors,
        corrupted=min(settings.corrupted, settings.survivors / 2),
        beta=delta * ROUNDING_DELTA / rounds,
        rotation_seed=_seed(settings.noise_seed) if rotate else None,
    )
    if settings.scale is not None:
        return found
    return with_scale(found, scale_for(ROUNDING_COST, found, settings.clip_norm, parameters))


def scale_for(cost: float, integers: Integers, clip_norm: float, parameters: int) -> float:
    """The least scale at which rounding enlarges the L2 sensitivity by at most the part `cost`."""
    n = integers.coordinates(parameters)
    low, high = 0.0, math.sqrt(n)
    while not rounded_norm(high, n, integers.beta) <= high * (1.0 + cost):
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = (low + high) / 2.0
        fine = rounded_norm(middle, n, integers.beta) <= middle * (1.0 + cost)
        low, high = (low, middle) if fine else (middle, high)
    return high / clip_norm


def with_scale(integers: Integers, scale: float) -> Integers:
    """The same with another scale."""
    return integers.model_copy(update={"scale": scale})


def rounded_norm(norm: float, coordinates: int, beta: float) -> float:
    """Bound, with probability 1 - beta, on the L2 norm of a stochastically rounded vector of norm `norm` [n]."""
    root = math.sqrt(coordinates)
    likely = norm**2 + coordinates / 4 + math.sqrt(2.0 * math.log(1.0 / beta)) * (norm + root / 2)
    return math.sqrt(min(likely, (norm + root) ** 2))


def _seed(noise_seed: int | None) -> int:
    if noise_seed is None:
        return secrets.randbits(53)
    digest = hashlib.sha256(f"rotation of seed {noise_seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11
