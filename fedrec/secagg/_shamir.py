"""Shamir's secret sharing of 32-byte secrets (Shamir 1979, "How to share a secret", CACM 22).

A secret is the value at 0 of a random polynomial of degree t - 1 over the field of p = 2^256 + 297 elements; any t
points give it back, fewer say nothing of it. Elements take 33 bytes, big endian. Python's integers do not take the
same time for all values: acceptable for secrets that live for one attempt. Out of scope: who holds which share.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from fedrec.core.errors import AggregationRefused
from fedrec.core.interruption import check
from fedrec.core.refusal_reasons import Reason

PRIME = 2**256 + 297
SECRET_BYTES = 32
ELEMENT_BYTES = 33
#: Sets of shares that are tried before they are taken to be wrong beyond repair.
MAX_TRIES = 50
#: Steps of Horner between two reductions, and bits of places that are multiplied as machine words.
_STEPS, _SMALL_BITS = 16, 31


def split(
    secret: bytes, xs: Sequence[int], threshold: int, random: Callable[[int], bytes] = os.urandom
) -> list[bytes]:
    """One share for each x.

    Args:
        secret: 32 bytes.
        xs: distinct, from 1.
        threshold: t, how many shares give the secret back.
        random: source of the coefficients.

    Raises:
        AggregationRefused: a secret of another length, an x that is 0 or there twice, or an impossible threshold.
    """
    if len(secret) != SECRET_BYTES:
        raise AggregationRefused(f"secret of {len(secret)} bytes: expected {SECRET_BYTES}", Reason.FORMAT)
    _check_places(xs)
    if not 1 <= threshold <= len(xs):
        raise AggregationRefused(
            f"threshold {threshold} of {len(xs)} shares: expected 1 to {len(xs)}", Reason.THRESHOLD
        )
    # 64 bytes are reduced, so that no element is favoured by more than 2^-255.
    tail = [int.from_bytes(random(64), "big") % PRIME for _ in range(threshold - 1)]
    coefficients = [*reversed(tail), int.from_bytes(secret, "big")]
    shares = []
    for x in xs:
        check()
        shares.append(_evaluate(coefficients, x).to_bytes(ELEMENT_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """The secret behind shares by x, from the `threshold` smallest; None when they are not of one secret.

    Raises:
        AggregationRefused: too few shares, an x that is 0, or a share that is no element of the field.
    """
    if len(shares) < threshold or threshold < 1:
        raise AggregationRefused(f"{len(shares)} shares: expected at least {threshold}", Reason.THRESHOLD)
    _check_places(list(shares))
    chosen = tuple(sorted(shares)[:threshold])
    return _to_secret(_at_zero({x: _element(shares[x]) for x in chosen}, chosen))


def combine_checked(
    shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool]
) -> bytes | None:
    """The secret that passes a check, also where some holders gave wrong shares.

    Tried in turn: the first t shares, the decoder below, and sets of t that leave out others each time, at most
    `MAX_TRIES` of them. So w wrong ones among h shares are put right for certain when h >= t + 2 w, and when w is 1,
    h > t and h <= `MAX_TRIES`. A share that is no element of the field counts as one that did not come.

    Returns:
        None when nothing passes.
    """
    values = {x: int.from_bytes(share, "big") for x, share in shares.items() if len(share) == ELEMENT_BYTES}
    values = {x: value for x, value in values.items() if 0 < x < PRIME and value < PRIME}
    if len(values) < threshold or threshold < 1:
        return None
    return next((secret for secret in _candidates(values, threshold) if is_right(secret)), None)


def _candidates(values: Mapping[int, int], threshold: int) -> Iterator[bytes]:
    """What the secret may be, likeliest and cheapest first."""
    ordered = sorted(values)
    windows = (tuple(sorted((ordered * 2)[start : start + threshold])) for start in range(len(ordered)))
    found: Iterator[int | None] = itertools.chain(
        [_at_zero(values, tuple(ordered[:threshold]))],
        # Made only when the first ones did not fit.
        (_decoded(values, threshold) for _ in range(1)),
        (_at_zero(values, xs) for xs in itertools.islice(windows, 1, MAX_TRIES)),
    )
    for value in found:
        secret = None if value is None else _to_secret(value)
        if secret is not None:
            yield secret


def _at_zero(values: Mapping[int, int], xs: tuple[int, ...]) -> int:
    return sum(values[x] * weight for x, weight in zip(xs, _weights(xs), strict=True)) % PRIME


def _to_secret(value: int) -> bytes | None:
    return None if value >= 1 << (8 * SECRET_BYTES) else value.to_bytes(SECRET_BYTES, "big")


def _check_places(xs: Sequence[int]) -> None:
    if len(set(xs)) != len(xs) or not all(0 < x < PRIME for x in xs):
        raise AggregationRefused(
            f"places of shares {list(xs)[:10]}: expected distinct ones from 1", Reason.FORMAT
        )


def _element(share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != ELEMENT_BYTES or value >= PRIME:
        raise AggregationRefused(
            f"share of {len(share)} bytes: expected {ELEMENT_BYTES} that are an element of the field",
            Reason.FORMAT,
        )
    return value


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    """Horner, highest coefficient first; a small x lets several steps share one reduction."""
    value = 0
    for start in range(0, len(coefficients), _STEPS):
        for coefficient in coefficients[start : start + _STEPS]:
            value = value * x + coefficient
        value %= PRIME
    return value


# Few: in a complete graph all secrets have the same holders; in a sparse one each set of holders is met once.
@lru_cache(maxsize=256)
def _weights(xs: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at 0: product over the others of x_j / (x_j - x_i)."""
    above = _product(xs)
    below = [x * each % PRIME for x, each in zip(xs, _products_of_gaps(xs), strict=True)]
    return tuple(above * inverse % PRIME for inverse in _inverses(below))


def _products_of_gaps(xs: Sequence[int]) -> list[int]:
    """For each x the product of (x_j - x) over the others; small places are multiplied many at once."""
    bits = max(xs).bit_length()
    if bits > _SMALL_BITS:
        return [_product([other - x for other in xs if other != x]) for x in xs]
    at = np.array(xs, dtype=np.int64)
    gaps = at[np.newaxis, :] - at[:, np.newaxis]
    np.fill_diagonal(gaps, 1)
    together = 62 // bits
    padded = np.ones((len(xs), -(-len(xs) // together) * together), dtype=np.int64)
    padded[:, : len(xs)] = gaps
    parts = padded.reshape(len(xs), -1, together).prod(axis=2)
    return [math.prod(row) % PRIME for row in parts.tolist()]


def _product(values: Iterable[int]) -> int:
    product = 1
    for value in values:
        product = product * value % PRIME
    return product


def _inverses(values: Sequence[int]) -> list[int]:
    """Of each value, none of them 0, by one inversion for all (Montgomery 1987, section 10.3.1)."""
    before = [1]
    for value in values:
        before.append(before[-1] * value % PRIME)
    inverse, out = pow(before.pop(), -1, PRIME), list[int]()
    for value, product in zip(reversed(values), reversed(before), strict=True):
        out.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return out[::-1]


# Wrong shares: a sharing is a Reed-Solomon code word --------------------------------------------------------


def _decoded(values: Mapping[int, int], threshold: int) -> int | None:
    """The value at 0 when at most (h - t) / 2 of h values by x are wrong; with more of them, any value or None.

    Gao 2003, "A new algorithm for decoding Reed-Solomon codes": the extended Euclidean algorithm on the polynomial
    that is 0 at every x and the one through all values, stopped half way; the quotient of what it leaves is the
    polynomial of the sharing. Only its value at 0 is computed. Polynomials are lists, lowest coefficient first.
    """
    xs = sorted(values)
    high, low = _through(xs, [values[x] for x in xs])
    v_high, v_low = list[int](), [1]
    while 2 * (len(low) - 1) >= len(xs) + threshold:
        quotient, rest = _divide(high, low)
        high, low = low, rest
        v_high, v_low = v_low, _subtract_product(v_high, quotient, v_low)
    # The factor's zeros are the places of wrong values, none of which is 0.
    if not v_low or not v_low[0]:
        return None
    return (low[0] if low else 0) * pow(v_low[0], -1, PRIME) % PRIME


def _through(xs: Sequence[int], ys: Sequence[int]) -> tuple[list[int], list[int]]:
    """The product of (X - x), and the polynomial through all points (Newton's divided differences)."""
    # Places are mostly small and near each other: few different distances, and an inverse costs as much as
    # a hundred products.
    inverse = {gap: pow(gap, -1, PRIME) for gap in {b - a for a, b in itertools.combinations(xs, 2)}}
    differences = list(ys)
    for order in range(1, len(xs)):
        for i in range(len(xs) - 1, order - 1, -1):
            gap = inverse[xs[i] - xs[i - order]]
            differences[i] = (differences[i] - differences[i - 1]) * gap % PRIME
    product, through = [1], list[int]()
    for x, difference in zip(xs, differences, strict=True):
        through = _subtract_product(through, [-difference % PRIME], product)
        product = _subtract_product([0, *product], [x], product)
    return product, through


def _divide(high: Sequence[int], low: Sequence[int]) -> tuple[list[int], list[int]]:
    """Quotient and rest; the last coefficient of `low` is not 0."""
    rest, shift = list(high), len(high) - len(low)
    inverse = pow(low[-1], -1, PRIME)
    quotient = [0] * (shift + 1)
    for place in range(shift, -1, -1):
        factor = quotient[place] = rest[place + len(low) - 1] * inverse % PRIME
        for i, coefficient in enumerate(low):
            rest[place + i] = (rest[place + i] - factor * coefficient) % PRIME
    return quotient, _trimmed(rest)


def _subtract_product(a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> list[int]:
    """a - b c."""
    out = [*a, *[0] * (len(b) + len(c) - 1 - len(a))]
    for i, left in enumerate(b):
        for j, right in enumerate(c):
            out[i + j] = (out[i + j] - left * right) % PRIME
    return _trimmed(out)


def _trimmed(polynomial: list[int]) -> list[int]:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial
