"""Local differential privacy: every user's own message is noisy enough, so that no one has to be trusted.

It is the strongest trust model and the most expensive one. In a sum over n users the noise has a standard deviation
of sqrt(n) times one user's, where central noise stays that of a single user whatever n is. Asking n users for one
bit at epsilon 1 finds a share to about 1 / sqrt(n): good for a few counts over many users (how many opened the app,
which of ten genres). Of a model update with P values each value has a noise-to-signal ratio of z sqrt(P) / sqrt(n),
which no population of real size pays for (`fedrec.privacy.mechanisms.local`).

Randomised response (Warner 1965) and its k-ary form (Kairouz, Oh and Viswanath 2014, arXiv 1407.1338) are pure:
delta is 0. Their adjacency, and that of `LocalGaussian`, is the strict local one: any two messages of a user. The
mechanism `Local` keeps the plan's: a user's contribution against zero.

Out of scope: repeated questions. Every answer spends its epsilon again; an answer that is stored and repeated
(not redrawn) spends it once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.core.updates import Floats
from fedrec.privacy.accounting import GaussianRelease, calibrate
from fedrec.privacy.noise import NoiseSource, snap

#: Above this, a coin of 53 bits would no longer be exact enough, and there is nothing left to protect.
MAX_EPSILON = 20.0


@dataclass(frozen=True)
class Estimate:
    """An unbiased estimate and its standard error (of the noise alone: what was asked is taken as fixed)."""

    value: float
    std: float


@dataclass(frozen=True)
class RandomisedResponse:
    """One bit per user, told truly with probability p = e^epsilon / (1 + e^epsilon)."""

    epsilon: float

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    @property
    def truth(self) -> float:
        """p; epsilon = ln(p / (1 - p))."""
        return 1.0 / (1.0 + math.exp(-self.epsilon))

    def perturb(self, bits: NDArray[np.bool_], noise: NoiseSource) -> NDArray[np.bool_]:
        """[n] what the users say, for what is true [n]."""
        return np.asarray(bits, dtype=bool) ^ noise.bernoulli(1.0 - self.truth, len(bits))

    def estimate(self, ones: int, users: int) -> Estimate:
        """How many users have the bit, when `ones` of `users` say so; may be negative or above `users`."""
        p = self.truth
        value = (ones - users * (1.0 - p)) / (2.0 * p - 1.0)
        return Estimate(value, math.sqrt(users * p * (1.0 - p)) / (2.0 * p - 1.0))


@dataclass(frozen=True)
class KaryResponse:
    """One of k answers per user: the true one with probability e^epsilon / (e^epsilon + k - 1), else another one."""

    epsilon: float
    k: int

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        if self.k < 2:
            raise PrivacyRefused(f"randomised response with {self.k} answers: expected 2 or more")

    @property
    def truth(self) -> float:
        """Probability of the true answer."""
        return 1.0 / (1.0 + (self.k - 1) * math.exp(-self.epsilon))

    @property
    def other(self) -> float:
        """Probability of each answer that is not true; truth / other = e^epsilon."""
        return (1.0 - self.truth) / (self.k - 1)

    def perturb(self, answers: NDArray[np.int64], noise: NoiseSource) -> NDArray[np.int64]:
        """[n] what the users say, for what is true [n], both in 0..k-1.

        Raises:
            PrivacyRefused: an answer is out of range.
        """
        true = np.asarray(answers, dtype=np.int64)
        if len(true) and not (true.min() >= 0 and true.max() < self.k):
            raise PrivacyRefused(f"answers from {true.min()} to {true.max()}: expected 0 to {self.k - 1}")
        step = 1 + (noise.uniform(len(true)) * (self.k - 1)).astype(np.int64)
        lies = noise.bernoulli(1.0 - self.truth, len(true))
        return np.asarray((true + step * lies) % self.k)

    def estimate(self, counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Unbiased number of users with each answer [k], and its standard error [k], from how many said it [k].

        The errors take the estimated shares (kept within 0..1) for the true ones.
        """
        users = int(np.sum(counts))
        gain = self.truth - self.other
        value = (counts - users * self.other) / gain
        have = np.clip(value, 0.0, users)
        variance = have * self.truth * (1.0 - self.truth) + (users - have) * self.other * (1.0 - self.other)
        return np.asarray(value), np.asarray(np.sqrt(variance) / gain)


@dataclass(frozen=True)
class LocalGaussian:
    """A short vector of L2 norm at most C per user, with the least Gaussian noise that keeps (epsilon, delta).

    Any two vectors within the bound are up to 2C apart. The noise is calibrated on the exact curve of the Gaussian
    mechanism (Balle and Wang 2018, arXiv 1805.06530), not the classical formula, which is wrong above epsilon 1.
    """

    epsilon: float
    delta: float
    clip_norm: float

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each value of one user's message."""
        multiplier = calibrate(lambda z: [GaussianRelease(noise_multiplier=z)], self.epsilon, self.delta)
        return 2.0 * self.clip_norm * multiplier

    def perturb(self, vectors: Floats, noise: NoiseSource) -> Floats:
        """[n, P] what the users send, for their vectors [n, P]; longer ones are clipped, broken ones are zero."""
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        good = np.isfinite(norms)
        scale = self.clip_norm / np.maximum(np.where(good, norms, self.clip_norm), self.clip_norm)
        kept = np.where(good, vectors, 0.0) * scale
        std = self.std
        return snap(kept + noise.normal(kept.size, std).reshape(kept.shape), std)

    def estimate(self, messages: Floats) -> tuple[Floats, float]:
        """The sum of all users' vectors [P], and the standard error of each of its values, from messages [n, P]."""
        return np.asarray(messages.sum(axis=0)), self.std * math.sqrt(len(messages))


def _check_epsilon(epsilon: float) -> None:
    if not 0.0 < epsilon <= MAX_EPSILON:
        raise PrivacyRefused(
            f"epsilon of randomised response is {epsilon}: expected above 0, up to {MAX_EPSILON:g}"
        )
