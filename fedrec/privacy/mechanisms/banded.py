"""Correlated noise: noise of one round is partly taken back in the next ones, so that sums over rounds hold less.

Training adds up released sums, so what counts is the noise in their prefix sums A X (A: lower triangle of ones, or
momentum's). The factorisation A = (A C^-1) C releases C X + Z, with Z independent, and reads A X + A C^-1 Z from it:
in round t the noise y_t of the sum solves C Y = Z. C is lower triangular with b bands and Toeplitz, so with c its
first column, of norm 1,

    y_t = (z_t - c_1 y_{t-1} - ... - c_{b-1} y_{t-b+1}) / c_0,      z_t normal with standard deviation z,

for which the coordinator remembers the last b - 1 of the y (its state, stored with the checkpoint).

Sensitivity of C X, each user's x_t being at most 1 long in the rounds in which the user takes part:

    groups take turns (`options.cycle` = s, b <= s)   the columns of a user's rounds do not overlap: k = ceil(T / s)
                                                      Gaussian releases of multiplier z, each amplified by Poisson
                                                      sampling at rate q s, where the draws are secret
    every user in every round                         |C 1|, reached by a user who sends the same in all rounds;
                                                      for an A of ones the best c is then independent noise, b = 1

    c minimises |A C^-1|_F^2 times the squared sensitivity (L-BFGS, offline; the plan holds the result).

Sources: Kairouz et al. 2021, "Practical and private (deep) learning without sampling or shuffling", arXiv 2103.00039;
Denisov et al. 2022 (arXiv 2202.08312), also why adaptively chosen X are covered; Choquette-Choo et al. 2023,
"(Amplified) banded matrix factorization", arXiv 2306.08153, theorem 4 for bands, turns and amplification; McKenna
2024, arXiv 2405.15913, for Toeplitz C.

Letters: T rounds, b bands, P values, z noise multiplier, q sampling rate, s groups, C clip norm beside a matrix C.
Out of scope: which users are in a group (`fedrec.rounds.local_training`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.core.stage import RoundContext
from fedrec.core.updates import Floats, Layout, State
from fedrec.privacy._releases import GaussianRelease, Release
from fedrec.privacy.mechanism import Contribution, Mechanism, checked, noise_of
from fedrec.privacy.noise import snap
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.settings import OptionValue, Trust

#: Bands where every user takes part in every round; more gain nothing there.
_BANDS_OF_ALL = 8


class BandedOptions(BaseModel):
    """`privacy.options` of this mechanism.

    Attributes:
        cycle: s, groups of users that take turns; None: every user takes part in every round.
        bands: b; 1 is independent noise; None: as many as `cycle`.
        momentum: of the workload, where the server's optimiser has one: A holds (1 - momentum^k) / (1 - momentum).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cycle: int | None = Field(default=None, ge=2)
    bands: int | None = Field(default=None, ge=1)
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)


@MECHANISMS.register("banded")
@dataclass(frozen=True)
class Banded(Mechanism):
    """Noise of a banded matrix factorisation, added by a coordinator that is trusted with clean sums."""

    trust: ClassVar[Trust] = "central"
    claims_sampling = True
    takes = frozenset({"carried", "cycle"})
    sends_clean_sums = True
    trusted = "the server is trusted"
    noise_kind = "Gaussian, correlated over rounds (banded matrix factorisation)"
    correlates_rounds = True
    noise_place = "once per round by the coordinator, to the sum, also when no node answers"

    # The plan ---------------------------------------------------------------------------------------------

    @classmethod
    def planned(cls, options: Mapping[str, OptionValue], fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bands and coefficients, and whose turn it is."""
        try:
            given = BandedOptions.model_validate(options)
        except ValidationError as error:
            raise ConfigError(f"privacy.options: {'; '.join(map(_problem, error.errors()))}") from error
        bands = min(given.bands or given.cycle or _BANDS_OF_ALL, fields["rounds"])
        c = optimal_coefficients(bands, fields["rounds"], given.cycle, given.momentum)
        turns = {} if given.cycle is None else {"sampling": "cyclic", "cycle": given.cycle}
        return {"options": {"bands": len(c), "momentum": given.momentum, "coefficients": c}, **turns}

    def problems(self) -> list[str]:
        """Coefficients that are none, noise that differs between rounds, users whose turns the bands overlap."""
        plan, c = self.plan, self.coefficients
        checks = {
            "banded noise needs options.coefficients, at least 0 and of norm 1: plan it again": (
                not len(c) or not bool((c >= 0).all()) or abs(float(c @ c) - 1.0) > 1e-9 or c[0] == 0.0
            ),
            "banded noise is the same in every round: use a model without a noise schedule": (
                len(set(plan.noise_multipliers)) > 1
            ),
            "banded noise needs to know in which rounds a user can take part: set privacy.options.cycle, or "
            "federation.sampling_rate = 1": plan.sampling == "poisson",
            f"{len(c)} bands and a cycle of {plan.cycle}: expected at most as many bands as groups; lower "
            "privacy.options.bands": plan.cycle is not None and len(c) > plan.cycle,
        }
        return [text for text, wrong in checks.items() if wrong]

    @functools.cached_property
    def coefficients(self) -> Floats:
        """[b] c, the first column of C, of norm 1."""
        value = dict(self.plan.options).get("coefficients", ())
        return np.array(value if isinstance(value, tuple) else (), dtype=np.float64)

    def noise_std(self, round_: int, l2: float) -> float:
        """z C times the norm of row `round_` of C^-1."""
        h = inverse(self.coefficients, round_)
        return self.plan.noise_multipliers[round_ - 1] * l2 * math.sqrt(float(h @ h))

    def effective_std(self, round_: int, l2: float) -> float:
        """z C times the root of |A C^-1|_F^2 / |A|_F^2."""
        rounds, momentum = self.plan.rounds, dict(self.plan.options).get("momentum", 0.0)
        beta = float(momentum) if isinstance(momentum, int | float) else 0.0
        part = squared_error(self.coefficients, rounds, beta) / squared_error(np.ones(1), rounds, beta)
        return self.plan.noise_multipliers[round_ - 1] * l2 * math.sqrt(part)

    def releases(self, rounds: int) -> list[Release]:
        """One Gaussian for each turn of a user, or one for all rounds; see the module's text."""
        if not rounds:
            return []
        z, cycle = self.plan.noise_multipliers[0], self.plan.cycle
        if cycle is not None:
            return [GaussianRelease(z, math.ceil(rounds / cycle), self.plan.amplification)]
        return [GaussianRelease(z / sensitivity_of_all(self.coefficients, rounds))]

    def lost_delta(self, rounds: int) -> float:
        """A neighbouring sum that wraps around is not hidden by noise that is added after the sum."""
        return 0.0 if self.plan.carried is None else 2.0 * self.plan.carried.wrap * rounds

    # The statement ----------------------------------------------------------------------------------------

    @property
    def released_sentence(self) -> str:
        """The sums alone."""
        return "One noised sum of the users' updates per round ({rounds} rounds)."

    def adversary(self, outside: str) -> list[str]:
        """All but the server."""
        return [
            f"Protects against {outside}, who may see all rounds: part of a round's noise is taken back later, and "
            "epsilon is of all rounds together.",
            "The server is trusted: it adds up updates as they are, adds the noise, and must forget the clean sums "
            "and, at the end, the noise.",
        ]

    def uncovered(self, *, plain: bool) -> list[str]:
        """The server, and the noise that it remembers."""
        kept = len(self.coefficients) - 1
        lines = ["The server: it sees sums before noise is added, and picks who takes part."]
        if kept:
            lines.append(
                f"The server's checkpoint: until the last round it holds the noise of the last {kept} rounds, which "
                "a reader of it can subtract from what was released."
            )
        return lines

    def epsilon_of_nodes(self, users: float) -> float:
        """Infinite: nodes add no noise."""
        return math.inf

    def independent(self, outputs: Sequence[Floats]) -> list[Floats]:
        """C X + Z."""
        c = self.coefficients
        return [
            np.asarray(sum(c[j] * outputs[t - j] for j in range(min(len(c), t + 1))))
            for t in range(len(outputs))
        ]

    # The stage --------------------------------------------------------------------------------------------

    def init(self) -> State:
        """No noise has been drawn: `past` [at most b - 1, P] the y in units of the sensitivity, newest first."""
        return {"past": np.zeros((0, 0)), "round": np.zeros(1, dtype=np.int64)}

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """The layout itself.

        Raises:
            ConfigError: other values are sent in every round: noise of one value would be taken back from another.
        """
        parts = [
            name for name, spec in layout.blocks.items() if spec.rows is not None or spec.basis is not None
        ]
        if parts:
            raise ConfigError(
                f"privacy.mechanism 'banded' and other values of {', '.join(parts)} in every round: send whole "
                "updates (drop federation.compression; raise federation.shard_parameters, or secagg.dense_parameters)"
            )
        return super().layout(layout, context)

    def noised(
        self, vector: Contribution, users: int, context: RoundContext, state: State
    ) -> tuple[Floats, State]:
        """[P] the total plus the noise of its round. The noise of rounds that gave no sum is drawn and dropped.

        Raises:
            PrivacyRefused: the vector is not as long as in the rounds before.
        """
        values, noise, l2 = checked(vector, users), noise_of(context), context.bound.l2
        past, last = state["past"], int(state["round"][0])
        if last and past.shape[1] != len(values):
            raise PrivacyRefused(
                f"sum of {len(values)} values after one of {past.shape[1]}: expected the same in all rounds, since "
                "noise is taken back value by value; use another mechanism"
            )
        past = past.reshape(-1, len(values))
        for round_ in range(last + 1, context.round + 1):
            fresh = noise.normal(len(values), self.plan.noise_multipliers[round_ - 1])
            drawn = self._next(past, fresh)
            past = np.concatenate([drawn[None], past])[: len(self.coefficients) - 1]
        released = snap(values + l2 * drawn, self.noise_std(context.round, l2))
        if context.round == self.plan.rounds:
            past = past[:0]
        return released, {"past": past, "round": np.array([context.round])}

    def _next(self, past: Floats, fresh: Floats) -> Floats:
        """[P] y of a round, of the ones before and z."""
        c = self.coefficients
        return np.asarray((fresh - c[1 : len(past) + 1] @ past) / c[0])

    def packed(self, vector: Floats, state: State) -> Floats:
        """[(1 + kept) P] the released vector, and the noise that later rounds take back."""
        return np.concatenate([vector, state["past"].reshape(-1)])

    def unpacked(self, values: Floats, context: RoundContext) -> tuple[Floats, State]:
        """See `packed`."""
        rows = values.reshape(-1, context.layout.size)
        return rows[0], {"past": rows[1:], "round": np.array([context.round])}


# Matrices, by the first column of each -----------------------------------------------------------------------


def inverse(c: Floats, n: int) -> Floats:
    """[n] first column of C^-1, for C with first column `c` [b]."""
    from scipy.signal import lfilter

    return np.asarray(lfilter([1.0], c, np.eye(1, n)[0]))


def workload(n: int, momentum: float = 0.0) -> Floats:
    """[n] first column of A: what round 1 adds to the model after each round."""
    return np.cumsum(momentum ** np.arange(n))


def squared_error(c: Floats, rounds: int, momentum: float = 0.0) -> float:
    """|A C^-1|_F^2: expected squared error of all T prefix sums, for z of standard deviation 1 and P = 1."""
    d = np.convolve(workload(rounds, momentum), inverse(c, rounds))[:rounds]
    return float(np.arange(rounds, 0, -1) @ np.square(d))


def sensitivity_of_all(c: Floats, rounds: int) -> float:
    """|C 1|: the sensitivity where every user takes part in every round; c is at least 0."""
    return float(np.linalg.norm(np.convolve(np.ones(rounds), c)[:rounds]))


@functools.lru_cache(maxsize=64)
def optimal_coefficients(
    bands: int, rounds: int, cycle: int | None, momentum: float = 0.0
) -> tuple[float, ...]:
    """[at most b] c of norm 1 with the least error for a given guarantee; its last value is not 0.

    Args:
        bands: b.
        rounds: T.
        cycle: s; None: every user takes part in every round.
        momentum: of the workload.
    """
    from scipy.optimize import minimize

    if bands == 1:
        return (1.0,)
    start = np.cumprod([1.0, *((2 * k - 1) / (2 * k) for k in range(1, bands))])  # the square root of A
    found = minimize(
        _loss,
        start[1:],
        args=(workload(rounds, momentum), cycle is None),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * (bands - 1),
        options={"maxiter": 500, "ftol": 1e-13},
    )
    c = np.trim_zeros(np.concatenate([[1.0], found.x]), "b")
    return tuple((c / np.linalg.norm(c)).tolist())


def _loss(tail: Floats, a: Floats, everyone: bool) -> tuple[float, Floats]:
    """log of error times squared sensitivity at c = (1, tail), and its gradient."""
    c, rounds = np.concatenate([[1.0], tail]), len(a)
    left = np.arange(rounds, 0, -1)
    h = inverse(c, rounds)
    d = _product(a, h)
    error = float(left @ np.square(d))
    # d depends on c by -a * h * h, shifted by the index of the coefficient.
    moved, weighted = _product(d, h), left * d
    gradient = np.array([-2.0 * weighted[k:] @ moved[: rounds - k] for k in range(len(c))]) / error
    if everyone:
        ones = _product(np.ones(rounds), c)
        square = float(ones @ ones)
        gradient += np.array([2.0 * ones[k:].sum() for k in range(len(c))]) / square
    else:
        square = float(c @ c)
        gradient += 2.0 * c / square
    return math.log(error * square), gradient[1:]


def _product(left: Floats, right: Floats) -> Floats:
    """First column of the product of two Toeplitz matrices of `left`'s size."""
    from scipy.signal import fftconvolve

    product: NDArray[np.float64] = fftconvolve(left, right)[: len(left)]
    return product


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    return f"{where} = {item.get('input')!r:.40}: {item['msg']}"
