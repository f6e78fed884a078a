"""What a schedule of releases costs: epsilon at a delta, and the noise that a target epsilon asks for.

Two accountants. "pld" composes privacy loss distributions (dp-accounting, pessimistic estimates) and is tight for
schedules that were fixed in advance; Gaussians without sampling take the exact closed form. "rdp" adds up Renyi
divergences; it is looser, and the only one for Skellam noise and for filters. There is no CLT or "GDP" accountant:
under sampling it can state less than is spent.

Adjacency: one user's contribution is zeroed out, the population is public; this is what dp-accounting calls add or
remove. Out of scope: what is released in a run (`plan`), and keeping books (`ledger`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy._gaussian import gaussian_delta, gaussian_epsilon
from fedrec.privacy._releases import (
    GaussianRelease,
    PureRelease,
    Release,
    SkellamRelease,
    merged,
    reveals_all,
)
from fedrec.privacy._renyi import rdp, rdp_delta, rdp_epsilon

__all__ = [
    "Accountant",
    "GaussianRelease",
    "PureRelease",
    "Release",
    "SkellamRelease",
    "calibrate",
    "delta_at",
    "epsilon",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "grouped_epsilon",
    "rdp",
    "rdp_epsilon",
    "summary",
    "zcdp_rho",
]

Accountant = Literal["pld", "rdp"]

#: Grid of the privacy loss: as fine as dp-accounting's default, coarser where losses are large or releases differ.
_GRID = 1e-4
#: Calibration ends within this part below the target.
_CLOSE = 1e-4


def epsilon(releases: Sequence[Release], delta: float, accountant: Accountant = "pld") -> float:
    """Smallest epsilon that the accountant can state; 0 for nothing released, infinite without noise.

    Args:
        releases: of one schedule.
        delta: in (0, 1).
        accountant: which one.

    Raises:
        ConfigError: delta is out of range.
        PrivacyRefused: Skellam noise with accountant "pld".
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta!r}: expected a number between 0 and 1; leave it out for N^-1.1")
    return _epsilon(merged(releases), delta, accountant, _GRID)


def delta_at(releases: Sequence[Release], epsilon: float, accountant: Accountant = "pld") -> float:
    """Smallest delta at a given epsilon.

    Raises:
        PrivacyRefused: Skellam noise with accountant "pld".
    """
    if not epsilon >= 0:
        raise ConfigError(f"epsilon = {epsilon!r}: expected a number of at least 0; give the target")
    known = merged(releases)
    if not known or any(reveals_all(release) for release in known):
        return 0.0 if not known or math.isinf(epsilon) else 1.0
    if math.isinf(epsilon):
        return 0.0
    if accountant == "rdp":
        return rdp_delta(rdp(known), epsilon)
    mu = gaussian_mu(known)
    if mu is not None:
        return gaussian_delta(mu, epsilon)
    wide = max(epsilon, rdp_epsilon(rdp(known), _GRID))
    return float(_composed(known, _grid(known, wide, _GRID)).get_delta_for_epsilon(epsilon))


def calibrate(
    make: Callable[[float], Sequence[Release]],
    epsilon: float,
    delta: float,
    accountant: Accountant = "pld",
    *,
    rough: bool = False,
) -> float:
    """Smallest noise multiplier z whose schedule `make(z)` costs at most `epsilon`, to a relative 1e-4 of epsilon.

    The result always keeps the target: `epsilon(make(z), delta, accountant) <= epsilon`.

    Args:
        make: releases of a multiplier; more noise must not cost more.
        epsilon: the target, above 0; infinite asks for no noise.
        delta: in (0, 1).
        accountant: which one.
        rough: stop at a coarse grid of the privacy loss: many times faster, a little more noise than needed.

    Raises:
        ConfigError: the target is no positive number, or delta is out of range.
        PrivacyRefused: no amount of noise reaches the target.
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon = {epsilon!r}: expected a number above 0; 1 to 8 are usual targets")
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta!r}: expected a number between 0 and 1; leave it out for N^-1.1")
    if math.isinf(epsilon):
        return 0.0

    def excess(z: float, grid: float) -> float:
        cost = _epsilon(merged(make(z)), delta, accountant, grid)
        return -math.inf if cost == 0 else math.log(cost / epsilon)

    near = _solve(lambda z: excess(z, 20 * _GRID), 1.0, 2.0)
    if rough:
        return near
    return _solve(lambda z: excess(z, _GRID), near, 1.005)


def grouped_epsilon(
    noise_multiplier: float, sampling_rate: float, steps: int, group_size: int, delta: float
) -> float:
    """Epsilon of a whole user in DP-SGD over single examples: all `group_size` examples of the user are removed.

    In each step the number of the user's examples in the batch is binomial, and each moves the sum by up to the clip
    norm: a mixture of Gaussians (Dong et al. 2022, arXiv 2210.00597; dp-accounting's MixtureOfGaussians).

    Args:
        noise_multiplier: sigma of one step, relative to one example's clip norm.
        sampling_rate: with which an example joins a batch.
        steps: T.
        group_size: most examples of one user.
        delta: in (0, 1).
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta!r}: expected a number between 0 and 1; leave it out for N^-1.1")
    if steps == 0 or group_size == 0 or sampling_rate == 0 or math.isinf(noise_multiplier):
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    # All examples in every batch is the worst case (the hockey-stick divergence is jointly convex).
    bound = gaussian_epsilon(group_size * math.sqrt(steps) / noise_multiplier, delta)
    if sampling_rate == 1.0:
        return bound
    if group_size == 1:
        return epsilon([GaussianRelease(noise_multiplier, steps, sampling_rate)], delta)
    return min(bound, _mixture_epsilon(noise_multiplier, sampling_rate, steps, group_size, delta))


def gaussian_mu(releases: Sequence[Release]) -> float | None:
    """mu of the one Gaussian that the releases amount to, or None if they are not all Gaussian without sampling."""
    known = merged(releases)
    if not all(isinstance(each, GaussianRelease) and each.sampling_rate == 1.0 for each in known):
        return None
    if any(reveals_all(each) for each in known):
        return math.inf
    return math.sqrt(
        sum(each.count / each.noise_multiplier**2 for each in known if isinstance(each, GaussianRelease))
    )


def zcdp_rho(releases: Sequence[Release]) -> float | None:
    """rho of zero-concentrated privacy without amplification (Bun & Steinke 2016); None with Skellam noise."""
    rho = 0.0
    for release in merged(releases):
        if reveals_all(release):
            return math.inf
        match release:
            case GaussianRelease():
                rho += release.count / (2 * release.noise_multiplier**2)
            case PureRelease():
                rho += release.count * release.epsilon**2 / 2
            case SkellamRelease():
                return None
    return rho


def without_amplification(releases: Sequence[Release]) -> tuple[Release, ...]:
    """The schedule as someone sees it who knows who was sampled, such as the server that picked the cohort."""
    known = merged(releases)
    return tuple(
        replace(each, sampling_rate=1.0) if isinstance(each, GaussianRelease) else each for each in known
    )


def summary(releases: Sequence[Release], delta: float) -> dict[str, float | None]:
    """The same schedule by every accountant; None where one does not apply.

    Returns:
        pld, rdp: epsilon with the amplification that the releases claim.
        without_amplification: epsilon against someone who knows the samples (tightest accountant that applies).
        replace_one: epsilon if one user's contribution may be replaced by any other, which moves a sum by 2C.
        mu, rho: of the unsampled schedule as one Gaussian, and in zero-concentrated privacy.
        delta: as given.
    """
    plain = without_amplification(releases)
    skellam = any(isinstance(each, SkellamRelease) for each in plain)
    best: Accountant = "rdp" if skellam else "pld"
    return {
        "delta": delta,
        "pld": None if skellam else epsilon(releases, delta, "pld"),
        "rdp": epsilon(releases, delta, "rdp"),
        "without_amplification": epsilon(plain, delta, best),
        "replace_one": _replace_one_epsilon(merged(releases), delta, best),
        "mu": gaussian_mu(plain),
        "rho": zcdp_rho(plain),
    }


@functools.lru_cache(maxsize=4096)
def _epsilon(releases: tuple[Release, ...], delta: float, accountant: Accountant, grid: float) -> float:
    if accountant not in ("pld", "rdp"):
        raise ConfigError(f"accountant {accountant!r}: expected 'pld' or 'rdp'; set privacy.accountant")
    if not releases:
        return 0.0
    if any(reveals_all(release) for release in releases):
        return math.inf
    if accountant == "rdp":
        return rdp_epsilon(rdp(releases), delta)
    mu = gaussian_mu(releases)
    if mu is not None:
        return gaussian_epsilon(mu, delta)
    return _pld_epsilon(releases, delta, grid)


def _pld_epsilon(
    releases: tuple[Release, ...], delta: float, grid: float, replace_one: bool = False
) -> float:
    estimate = rdp_epsilon(rdp(releases), delta) * (2 if replace_one else 1)
    if math.isinf(estimate):
        return math.inf
    pld = _composed(releases, _grid(releases, estimate, grid), replace_one)
    return float(pld.get_epsilon_for_delta(delta))


def _grid(releases: tuple[Release, ...], estimate: float, grid: float) -> float:
    """Width such that a distribution has about 1e5 points, wider when there are many to compose."""
    return max(grid, estimate * grid / 10) * max(1.0, len(releases) / 8)


def _composed(releases: tuple[Release, ...], grid: float, replace_one: bool = False) -> Any:
    """Privacy loss distribution of the schedule; Gaussians without sampling are first made one."""
    sampled = tuple(each for each in releases if isinstance(each, GaussianRelease) and each.sampling_rate < 1)
    plain = tuple(each for each in releases if isinstance(each, GaussianRelease) and each not in sampled)
    parts = [_gaussian_pld(each.noise_multiplier, each.sampling_rate, grid, replace_one) for each in sampled]
    counts = [each.count for each in sampled]
    for each in releases:
        if isinstance(each, SkellamRelease):
            raise PrivacyRefused(
                "Skellam noise has no PLD accountant here: expected accountant 'rdp'; set privacy.accountant"
            )
        if isinstance(each, PureRelease):
            parts.append(_pure_pld(each.epsilon, grid))
            counts.append(each.count)
    if plain:
        mu = gaussian_mu(plain) or 0.0
        parts.append(_gaussian_pld(1 / mu, 1.0, grid, replace_one))
        counts.append(1)
    powers = [
        part.self_compose(count) if count > 1 else part for part, count in zip(parts, counts, strict=True)
    ]
    return functools.reduce(lambda a, b: a.compose(b), powers)


@functools.lru_cache(maxsize=4)
def _gaussian_pld(noise_multiplier: float, sampling_rate: float, grid: float, replace_one: bool) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    relation = NeighboringRelation.REPLACE_ONE if replace_one else NeighboringRelation.ADD_OR_REMOVE_ONE
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=grid,
        neighboring_relation=relation,
    )


def _pure_pld(epsilon: float, grid: float) -> Any:
    from dp_accounting.pld import common, privacy_loss_distribution

    return privacy_loss_distribution.from_privacy_parameters(
        common.DifferentialPrivacyParameters(epsilon, 0.0), value_discretization_interval=grid
    )


def _replace_one_epsilon(releases: tuple[Release, ...], delta: float, accountant: Accountant) -> float:
    """Replacing moves a sum by 2C; a pure release (randomised response) bounds a replacement as it is."""
    revealed = any(reveals_all(each) for each in releases)
    if accountant == "pld" and not revealed and gaussian_mu(releases) is None:
        return _pld_epsilon(releases, delta, _GRID, replace_one=True)
    return epsilon([_doubled(each) for each in releases], delta, accountant)


def _doubled(release: Release) -> Release:
    match release:
        case GaussianRelease():
            # Sampling: without a PLD no amplification is claimed for a replacement.
            return replace(release, noise_multiplier=release.noise_multiplier / 2, sampling_rate=1.0)
        case SkellamRelease():
            return replace(release, l2=2 * release.l2, l1=2 * release.l1)
        case PureRelease():
            return release


def _mixture_epsilon(sigma: float, q: float, steps: int, n: int, delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution

    log_q, log_p = math.log(q), math.log1p(-q)
    sizes = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    probs = [math.exp(size + k * log_q + (n - k) * log_p) for k, size in enumerate(sizes)]
    # Two passes: a coarse one finds how large the loss is, and with it how wide the grid may be.
    widest = n * n / (2 * sigma * sigma) + 10 * n / sigma
    found, grid = math.inf, max(5 * _GRID, widest / 2e4)
    for _ in range(2):
        pld = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            sigma, list(range(n + 1)), probs, value_discretization_interval=grid
        )
        found = min(found, float(pld.self_compose(steps).get_epsilon_for_delta(delta)))
        finer = max(5 * _GRID, found * _GRID, widest / 2e6)
        if finer >= grid / 2:
            break
        grid = finer
    return found


def _solve(excess: Callable[[float], float], start: float, factor: float) -> float:
    """Smallest z with excess(z) <= 0, found from `start` in steps of `factor`, then by false position in log z."""
    low, high = _bracket(excess, start, factor)
    if low is None:
        return high
    under, over = excess(high), excess(low)
    for turn in range(60):
        if -_CLOSE <= under <= 0 or math.log(high / low) < 1e-6:
            break
        # Halving now and then keeps false position from creeping up on one side.
        share = 0.5 if turn % 3 == 2 or not math.isfinite(under + over) else over / (over - under)
        middle = low * (high / low) ** min(max(share + 0.02 * (1 - share), 0.02), 0.98)
        value = excess(middle)
        low, over, high, under = (low, over, middle, value) if value <= 0 else (middle, value, high, under)
    return high


def _bracket(excess: Callable[[float], float], start: float, factor: float) -> tuple[float | None, float]:
    low = high = start
    if excess(start) <= 0:
        while excess(low) <= 0:
            high, low, factor = low, low / factor, factor * factor
            if low < 1e-9:
                return None, high
        return low, high
    while excess(high) > 0:
        low, high, factor = high, high * factor, factor * factor
        if high > 1e15:
            raise PrivacyRefused(
                "no amount of noise reaches the target epsilon: a part of the schedule costs more by itself; "
                "raise epsilon or leave that part out"
            )
    return low, high
