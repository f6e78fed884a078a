"""Who neighbours whom, and how many neighbours and shares are enough.

Up to about a hundred devices everyone is everyone's neighbour. Above, a random k-regular graph keeps the cost of a
device flat (Bell et al. 2020, CCS): a circulant (Harary) graph on a public random permutation. k is the smallest with

    secrecy       P(corrupted neighbours of some device open its secrets)  <= 2^-sigma
    correctness   P(some device has fewer than t neighbours left)          <= 2^-eta

by union bounds over hypergeometric tails: a neighbourhood is a draw of k of the n - 1 others without replacement.
Corrupted neighbours open a secret when there are t of them. A server that cheats needs fewer: it tells the k + 1
holders two lists of survivors, each honest holder answers one and a corrupted one both, so c of them are enough when
2 t <= k + 1 + c.

The bounds are for one graph. Whoever can choose between g lists of adverts, by making keys anew or by leaving devices
out, can look for a bad graph among g of them: take sigma larger by log2 g. Out of scope: who is corrupted; that is an
assumption.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason

COMPLETE_UP_TO = 100


@lru_cache(maxsize=256)
def degree(
    n: int,
    corrupt: float = 0.1,
    drop: float = 0.1,
    sigma: float = 40.0,
    eta: float = 30.0,
    active: bool = True,
    *,
    fraction: float | None = 2 / 3,
    complete_up_to: int = COMPLETE_UP_TO,
) -> int:
    """k for n devices: even, or n - 1 (the complete graph) where n is small or no smaller k is enough.

    k of 100, 1000 and 10000 devices, with complete_up_to=2:

        corrupt, drop     active, 2/3       active, best t      semi-honest, best t
        5 %, 5 %          18, 64, 82       18, 62, 74          12, 34, 38
        10 %, 10 %        32, 124, 160     32, 114, 148        22, 52, 60
        20 %, 20 %        62, 364, 628     62, 344, 566        42, 112, 134

    Odd k would save up to 3 here and there, and so would a device that keeps no share of its own secret.

    Args:
        n: devices in the cohort.
        corrupt: part of them that works with the server.
        drop: part of them that may vanish.
        sigma, eta: -log2 of the chances of failure; see the module's text.
        active: the server may cheat.
        fraction: the one that `threshold` is called with; None: the best t for each k, which is the largest that is
            correct.
        complete_up_to: the graph is complete up to here.

    Raises:
        AggregationRefused: no devices, or a part that is not one.
    """
    if n < 1 or not (0 <= corrupt < 1 and 0 <= drop < 1):
        raise AggregationRefused(
            f"{n} devices, corrupt={corrupt}, drop={drop}: expected at least 1 device and parts from 0 to below 1",
            Reason.COHORT,
        )
    if n <= complete_up_to:
        return n - 1
    bad, gone = math.ceil(corrupt * n), math.ceil(drop * n)

    def fits(half: int) -> bool:
        return _fits(n, 2 * half, bad, gone, sigma, eta, active, fraction)

    low, high = 0, (n - 2) // 2
    if not fits(high):
        return n - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    # Rounding of t makes some k fit and the next ones not: the smallest of those close by.
    return 2 * next(half for half in range(max(1, high - 8), high + 1) if fits(half))


def log2_exposure(n: int, k: int, t: int, corrupt: float) -> float:
    """log2 of a bound on the chance that corrupted devices and a cheating server open the secrets of any device.

    Args:
        n: devices in the cohort.
        k: neighbours of each.
        t: shares that open a secret.
        corrupt: part of the devices that works with the server.
    """
    needed, bad = 2 * t - (k + 1), math.ceil(corrupt * n)
    if needed <= 0:
        return 0.0
    if needed > min(k, bad):
        return -math.inf
    return min(0.0, math.log2(n) + _log2_tails(n - 1, bad, k)[needed])


def threshold(k: int, fraction: float = 2 / 3, corrupted: int = 0) -> int:
    """t for k neighbours: the smallest of at least `fraction` of the k + 1 holders, with 2 t > k + 1 + corrupted.

    Never 1: a single share would be the secret.

    Args:
        k: neighbours of a device, without itself.
        fraction: of the holders.
        corrupted: devices of a neighbourhood that may work with the server.

    Raises:
        AggregationRefused: even all holders would not be enough, or fewer than none are corrupted.
    """
    holders = k + 1
    if corrupted < 0:
        raise AggregationRefused(
            f"{corrupted} corrupted devices in a neighbourhood: expected 0 or more", Reason.THRESHOLD
        )
    t = max(math.ceil(fraction * holders - 1e-9), (holders + corrupted) // 2 + 1, 2)
    if t > holders:
        raise AggregationRefused(
            f"{holders} holders of shares with {corrupted} assumed corrupted: no threshold is safe; expected more "
            "devices or fewer corrupted ones",
            Reason.THRESHOLD,
        )
    return t


def neighbours(position: int, n: int, k: int, seed: bytes) -> tuple[int, ...]:
    """Positions, rising, of one device's neighbours among n; symmetric.

    Args:
        position: of the device, from 0.
        n: devices.
        k: even, or at least n - 1 for the complete graph.
        seed: public; the same on all devices.

    Raises:
        AggregationRefused: a position or a k that there is not.
    """
    if not 0 <= position < n or k < 0 or (k % 2 and k < n - 1):
        raise AggregationRefused(
            f"neighbours of device {position} of {n} with k={k}: expected a place below {n}, and k even or {n - 1}",
            Reason.COHORT,
        )
    if k >= n - 1:
        return tuple(other for other in range(n) if other != position)
    order, at = permutation(n, seed), _inverse(n, seed)[position]
    steps = (step for step in range(-(k // 2), k // 2 + 1) if step)
    return tuple(sorted(order[(at + step) % n] for step in steps))


@lru_cache(maxsize=8)
def permutation(n: int, seed: bytes) -> tuple[int, ...]:
    """0 to n - 1, sorted by 128-bit values from SHAKE-256 of the seed: the same on every machine."""
    stream = hashlib.shake_256(b"fedrec neighbours " + seed).digest(16 * n)
    words = np.frombuffer(stream, dtype=">u8").reshape(n, 2)
    return tuple(np.lexsort((words[:, 1], words[:, 0])).tolist())


@lru_cache(maxsize=8)
def _inverse(n: int, seed: bytes) -> tuple[int, ...]:
    return tuple(np.argsort(permutation(n, seed)).tolist())


def _fits(
    n: int, k: int, bad: int, gone: int, sigma: float, eta: float, active: bool, fraction: float | None
) -> bool:
    """Whether k is enough with the t of a fraction, or with the best t."""
    vanish = _log2_tails(n - 1, gone, k)
    if fraction is None:
        # Secrecy grows with t, so the largest t that is correct decides.
        right = (t for t in range(k, 1, -1) if math.log2(n) + vanish[k - t + 1] <= -eta)
        t = next(right, 0)
    else:
        t = threshold(k, fraction)
    if not 2 <= t <= k or math.log2(n) + vanish[k - t + 1] > -eta:
        return False
    needed = 2 * t - (k + 1) if active else t
    return needed > 0 and math.log2(n) + _log2_tails(n - 1, bad, k)[needed] <= -sigma


def _log2_tails(population: int, marked: int, draws: int) -> list[float]:
    """[draws + 1] log2 P(X >= x) of a hypergeometric X: the marked ones among `draws` of `population`."""
    marked = min(marked, population)
    whole = _log_choose(population, draws)
    tails, tail = [-math.inf] * (draws + 1), -math.inf
    for x in range(min(draws, marked), -1, -1):
        if draws - x <= population - marked:
            term = _log_choose(marked, x) + _log_choose(population - marked, draws - x) - whole
            tail = max(tail, term) + math.log1p(math.exp(-abs(tail - term)))
        tails[x] = min(tail / math.log(2), 0.0)
    return tails


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
