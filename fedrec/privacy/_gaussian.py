"""Closed form of the Gaussian mechanism (Balle & Wang 2018, arXiv 1805.06530, theorem 8).

Gaussian releases without sampling compose exactly to one Gaussian of mu^2 = sum of 1 / z^2, so that no
numerical accountant is needed for them. Pure Python, so that a device can do it without the training extras.
"""

from __future__ import annotations

import math

#: Below this, erfc underflows and the asymptotic series is exact to double precision.
_FAR = -30.0


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of a Gaussian mechanism whose sensitivity is `mu` times its standard deviation."""
    if mu <= 0:
        return 0.0
    if math.isinf(mu):
        return 0.0 if math.isinf(epsilon) else 1.0
    above = log_normal_cdf(mu / 2 - epsilon / mu)
    below = epsilon + log_normal_cdf(-mu / 2 - epsilon / mu)
    return min(1.0, math.exp(above) * -math.expm1(min(below - above, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon >= 0 at which `gaussian_delta` is at most `delta`; infinite for delta = 0."""
    if mu <= 0 or delta >= 1 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if delta <= 0 or math.isinf(mu):
        return math.inf
    # Bun & Steinke 2016, proposition 1.3: rho + 2 sqrt(rho ln(1/delta)) suffices, with rho = mu^2 / 2.
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return high


def log_normal_cdf(x: float) -> float:
    """Logarithm of the standard normal distribution function; accurate in the far left tail, too."""
    if x > _FAR:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    # Abramowitz & Stegun 26.2.12.
    s = 1 / (x * x)
    series = 1 - s * (1 - 3 * s * (1 - 5 * s * (1 - 7 * s * (1 - 9 * s))))
    return -x * x / 2 - math.log(-x) - math.log(2 * math.pi) / 2 + math.log(series)
