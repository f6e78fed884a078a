"""Renyi divergences of releases, and the epsilon that follows from their sum.

Renyi divergences add up also when later releases are chosen after seeing earlier ones (Feldman & Zrnic 2021,
arXiv 2008.11193, for a fixed bound on the sum), which is why filters and ledgers count in them.
Sampled Gaussians come from dp-accounting.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fedrec.privacy._releases import GaussianRelease, PureRelease, Release, SkellamRelease, merged

FloatArray = NDArray[np.float64]

#: alpha of the divergences; those of dp-accounting, with more above 64, where a large variance has its best.
ORDERS: FloatArray = np.concatenate(
    [1 + np.arange(1, 100) / 10, np.arange(11, 64), [80, 96, 128, 192, 256, 512, 1024]]
).astype(np.float64)


def rdp(releases: Sequence[Release]) -> FloatArray:
    """Sum of the Renyi divergences at `ORDERS`."""
    total = np.zeros(len(ORDERS))
    for release in merged(releases):
        total += release.count * rdp_once(release)
    return total


def rdp_epsilon(divergences: FloatArray, delta: float) -> float:
    """Best epsilon over the orders (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, proposition 12).

    Written here, because a device has to hold the price of a task against its budget and has no dp-accounting; a
    test compares the two.
    """
    found = math.inf
    for order, divergence in zip(ORDERS.tolist(), divergences.tolist(), strict=True):
        if not math.isfinite(divergence):
            continue
        if delta**2 + math.expm1(-divergence) > 0:  # by Bretagnolle and Huber: delta <= sqrt(1 - exp(-KL))
            return 0.0
        found = min(found, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return max(0.0, found)


def rdp_delta(divergences: FloatArray, epsilon: float) -> float:
    """Best delta over the orders, by the same two bounds."""
    best = 0.0  # the logarithm of the least delta
    for order, divergence in zip(ORDERS.tolist(), divergences.tolist(), strict=True):
        if divergence == 0:
            return 0.0
        if math.isfinite(divergence):
            close = 0.5 * math.log1p(-math.exp(-divergence))
            far = (order - 1) * (divergence - epsilon + math.log1p(-1 / order)) - math.log(order)
            best = min(best, close, far)
    return math.exp(best)


def rdp_once(release: Release) -> FloatArray:
    """Renyi divergences of one repetition, in both directions, at `ORDERS`."""
    match release:
        case GaussianRelease():
            return gaussian_rdp(release.noise_multiplier, release.sampling_rate)
        case SkellamRelease():
            return skellam_rdp(release.l2, release.l1, release.variance, ORDERS)
        case PureRelease():
            return pure_rdp(release.epsilon, ORDERS)


@functools.lru_cache(maxsize=1024)
def gaussian_rdp(noise_multiplier: float, sampling_rate: float) -> FloatArray:
    """Of the Poisson-sampled Gaussian mechanism (Mironov, Talwar, Zhang 2019, arXiv 1908.10530)."""
    if noise_multiplier == 0:
        out = np.full(len(ORDERS), np.inf)
    elif sampling_rate == 1.0:
        out = ORDERS / (2 * noise_multiplier**2)
    else:
        out = _sampled_gaussian_rdp(noise_multiplier, sampling_rate)
    out.setflags(write=False)
    return out


def skellam_rdp(l2: float, l1: float, variance: float, orders: FloatArray) -> FloatArray:
    """Bound of Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995, theorem 3.5), which holds for whole orders.

    A divergence never falls with its order, so an order in between takes the bound of the next whole one.

    Args:
        l2, l1: sensitivities of integer vectors.
        variance: of the noise on every coordinate.
        orders: all above 1.
    """
    if variance == 0:
        return np.full(len(orders), np.inf)
    whole = np.ceil(orders)
    small = ((2 * whole - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return whole * l2**2 / (2 * variance) + np.minimum(small, 3 * l1 / (2 * variance))


def pure_rdp(epsilon: float, orders: FloatArray) -> FloatArray:
    """Largest divergence of any pure mechanism: that of binary randomised response, which dominates them all.

    Kairouz, Oh, Viswanath 2015 (arXiv 1311.0776) for the domination.
    """
    if math.isinf(epsilon):
        return np.full(len(orders), np.inf)
    yes, no = -math.log1p(math.exp(-epsilon)), -math.log1p(math.exp(-epsilon)) - epsilon
    terms = np.logaddexp(orders * yes + (1 - orders) * no, orders * no + (1 - orders) * yes)
    return np.maximum(terms / (orders - 1), 0.0)


def _sampled_gaussian_rdp(noise_multiplier: float, sampling_rate: float) -> FloatArray:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    event = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    accountant = RdpAccountant(ORDERS)
    with _no_chatter():
        accountant.compose(event)
    # Rounding errors of a tiny rate may fall below zero, which would be a claim of nothing spent.
    return np.maximum(np.asarray(accountant.rdp, dtype=np.float64), 0.0)


@contextmanager
def _no_chatter() -> Iterator[None]:
    # dp-accounting logs every order that it leaves out; leaving one out only makes epsilon larger.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
