"""From scores of canaries to bounds on epsilon: what a successful attack says about the mechanism that it attacked.

A canary is a planted user, in the run with probability 1/2; its score is what an attacker computes from the output,
higher where the canary seems to be in. Four readings of the scores, with what each takes for granted:

    clopper_pearson, rates   error rates of one threshold; canaries do not influence each other
    one_run_epsilon          number of right guesses over all canaries of one run; nothing else
    one_run_mu               the same, against the trade-off curve of a Gaussian; nothing else
    effect                   how far apart the two means are; canaries do not influence each other, scores normal

Letters: M canaries, alpha the probability that a bound is too high although everything is as stated.
Out of scope: how the scores come about (`games`) and which claim they are held against (`theory`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom, norm

Floats = NDArray[np.float64]

#: Parts of the canaries that are guessed about: few sure guesses or many unsure ones, at a union bound.
GUESSED = (1.0, 0.5, 0.25, 0.1, 0.04)
#: No bound is sought beyond this; it is far above any guarantee worth having.
MAX_EPSILON = 60.0
MAX_MU = 40.0


@dataclass(frozen=True)
class Scores:
    """What the attacker computed: [n] of the canaries that were in, [n] of those that were not."""

    included: Floats
    excluded: Floats

    @property
    def count(self) -> int:
        """M."""
        return len(self.included) + len(self.excluded)

    @classmethod
    def split(cls, scores: Floats, included: NDArray[np.bool_]) -> Scores:
        """From the scores of all canaries [M] and who was in [M]."""
        return cls(scores[included], scores[~included])

    def perfect(self) -> Scores:
        """As many canaries, told apart without an error: what is the most that their number can show."""
        return Scores(2.0 + np.linspace(0, 1, len(self.included)), np.linspace(0, 1, len(self.excluded)))


@dataclass(frozen=True)
class Rates:
    """Bounds on the error rates of one attack: it is right at least `tpr`, it is wrong at most `fpr`."""

    tpr: float
    fpr: float

    def mu(self) -> float:
        """mu of the least Gaussian trade-off curve that allows them (Dong, Roth and Su 2022, arXiv 1905.02383)."""
        return float(max(0.0, ndtri(self.tpr) - ndtri(self.fpr)))

    def epsilon(self, delta: float) -> float:
        """Least epsilon at `delta` that allows them: TPR <= e^epsilon FPR + delta (Kairouz et al. 2015)."""
        return math.log((self.tpr - delta) / self.fpr) if self.tpr - delta > self.fpr else 0.0


@dataclass(frozen=True)
class Effect:
    """Distance of the means in standard deviations of the excluded, with its two-sided interval."""

    value: float
    low: float
    high: float


def clopper_pearson(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Lower and upper bound of a probability, each missed with probability at most alpha (Clopper, Pearson 1934)."""
    low = float(beta.ppf(alpha, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - alpha, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def rates(scores: Scores, alpha: float) -> Rates:
    """Error rates of the threshold that looks best on one half of the canaries, evaluated on the other half.

    Both bounds hold together with probability 1 - alpha.
    """
    inside, outside = scores.included, scores.excluded
    threshold = _best_threshold(inside[::2], outside[::2], alpha / 2)
    tpr, _ = clopper_pearson(int((inside[1::2] > threshold).sum()), len(inside[1::2]), alpha / 2)
    _, fpr = clopper_pearson(int((outside[1::2] > threshold).sum()), len(outside[1::2]), alpha / 2)
    return Rates(tpr, fpr)


def one_run_epsilon(scores: Scores, delta: float, alpha: float) -> float:
    """Lower bound on epsilon at `delta` from one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).

    Each canary must have been in with probability 1/2, independently of the others.
    """
    part = alpha / len(GUESSED)

    def refuted(epsilon: float, guesses: int, right: int) -> bool:
        return one_run_p_value(scores.count, guesses, right, epsilon, delta) < part

    return max(
        _largest(lambda epsilon, g=g, r=r: refuted(epsilon, g, r), MAX_EPSILON)  # type: ignore[misc]
        for g, r in _guesses(scores)
    )


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Most that (epsilon, delta) allows for the probability of so many right guesses (their theorem 5.2).

    P[W >= v] <= P[B >= v] + 2 M delta max_i P[v > B >= v - i] / i, B binomial of p = e^epsilon / (1 + e^epsilon).
    """
    p = 1.0 / (1.0 + math.exp(-epsilon))
    steps = np.arange(1, right + 1)
    near = np.cumsum(binom.pmf(right - steps, guesses, p)) / steps
    extra = float(near.max()) if right else 0.0
    return min(1.0, float(binom.sf(right - 1, guesses, p)) + 2.0 * canaries * delta * extra)


def one_run_mu(scores: Scores, alpha: float) -> float:
    """Lower bound on the mu of a Gaussian trade-off curve from one run (Mahloujifar et al. 2024, arXiv 2410.22235).

    Their algorithm 3. Each canary must have been in with probability 1/2, independently of the others.
    """
    part = alpha / len(GUESSED)
    return max(
        _largest(lambda mu, g=g, r=r: gaussian_refuted(scores.count, g, r, mu, part), MAX_MU)  # type: ignore[misc]
        for g, r in _guesses(scores)
    )


def gaussian_refuted(canaries: int, guesses: int, right: int, mu: float, alpha: float) -> bool:
    """Whether so many right guesses have a probability below alpha under every mu-Gaussian mechanism.

    With p_j the probability of j right guesses of g, and r_i and h_i the sums over j >= i of j p_j / M and
    (g - j) p_j / M, the trade-off curve demands h_i >= Phi(Phi^-1(r_{i+1}) - mu); starting from P[>= right] = alpha
    the sums are driven down to i = 0, where they would have to add up to g / M.
    """
    h, r = alpha * (guesses - right) / canaries, alpha * right / canaries
    for i in range(right - 1, -1, -1):
        if r >= 1.0:
            return True
        grown = max(h, float(ndtr(ndtri(r) - mu)))
        r += i / (guesses - i) * (grown - h)
        h = grown
    return bool(r + h >= guesses / canaries)


def effect(scores: Scores, alpha: float) -> Effect:
    """d = (mean in - mean out) / sd out, and an interval that holds with probability about 1 - alpha.

    The one-shot estimate (Andrew et al. 2023, arXiv 2302.03098): of a Gaussian mechanism d is mu itself. The interval
    is the delta method's; the excluded scores must be normal, the included ones need only a variance.
    """
    inside, outside = scores.included, scores.excluded
    spread = float(outside.std(ddof=1))
    gap = float(inside.mean() - outside.mean())
    if spread == 0.0:
        # An output without any noise: every difference shows.
        value = math.inf if gap else 0.0
        return Effect(value, value, value)
    d = gap / spread
    ratio = float(inside.var(ddof=1)) / spread**2
    error = math.sqrt(ratio / len(inside) + 1 / len(outside) + d * d / (2 * (len(outside) - 1)))
    margin = float(norm.ppf(1 - alpha / 2)) * error
    return Effect(d, d - margin, d + margin)


def _best_threshold(inside: Floats, outside: Floats, alpha: float) -> float:
    """Of all scores and midpoints below the highest, the threshold with the largest mu by bounds at alpha."""
    # Every tenth of a per cent of the scores: more thresholds are no better and cost time.
    values = np.unique(np.quantile(np.concatenate([inside, outside]), np.linspace(0, 1, 201)))
    hits = len(inside) - np.searchsorted(np.sort(inside), values, side="right")
    misses = len(outside) - np.searchsorted(np.sort(outside), values, side="right")
    tpr = np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), len(inside) - hits + 1), 0.0)
    fpr = np.where(
        misses < len(outside), beta.ppf(1 - alpha, misses + 1, np.maximum(len(outside) - misses, 1)), 1.0
    )
    with np.errstate(invalid="ignore"):
        gain = ndtri(tpr) - ndtri(fpr)
    return float(values[int(np.argmax(np.where(np.isfinite(gain), gain, -np.inf)))])


def _guesses(scores: Scores) -> list[tuple[int, int]]:
    """For each part: how many are guessed about (half of them "in") and how many guesses are right."""
    values = np.concatenate([scores.included, scores.excluded])
    truth = np.arange(len(values)) < len(scores.included)
    # Ties must not be broken by the truth.
    shuffle = np.random.default_rng(0).permutation(len(values))
    ranked = truth[shuffle][np.argsort(values[shuffle], kind="stable")]
    out = []
    for part in GUESSED:
        half = max(1, int(part * len(values) / 2))
        out.append((2 * half, int(ranked[-half:].sum() + (~ranked[:half]).sum())))
    return out


def _largest(refuted: Callable[[float], bool], top: float) -> float:
    """Largest value from 0 to `top` that is refuted, to 1e-3; refutation must be monotone."""
    low, high = 0.0, top
    if not refuted(low):
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
