"""Rotation and encoding: sums of residues decode to the sum, wrap around where they must, and nowhere before."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import quick, seeds

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.privacy.noise import NoiseSource
from fedrec.secagg.encoding import Encoding, encoding_for
from fedrec.secagg.rotation import Rotation, padded_size, tail

Floats = NDArray[np.float64]
NONE = np.zeros(0)


def summed(encoding: Encoding, vectors: Floats, seed: int = 1) -> NDArray[Any]:
    """[m] sum of every row's residues."""
    source = NoiseSource(seed)
    total = np.zeros(encoding.length, dtype=encoding.dtype)
    for vector in vectors:
        total += encoding.encode(vector, np.zeros(encoding.numbers), source.uniform)
    return total


def largest(size: int) -> Floats:
    """The uniforms that round up whatever is not whole."""
    return np.full(size, 1.0 - 2.0**-53)


# -- rotation -----------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 700), seed=st.integers(0, 2**64 - 1), single=st.booleans())
@quick
def test_a_rotation_keeps_norms_and_can_be_undone(size: int, seed: int, single: bool) -> None:
    kind = np.float32 if single else np.float64
    x = np.random.default_rng(size).normal(size=size).astype(kind)
    rotation = Rotation(size, seed)
    rotated = rotation.apply(x)

    assert rotated.dtype == kind and rotated.shape == (rotation.padded,)
    tolerance = 1e-5 if single else 1e-12
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(x), rel=tolerance)
    np.testing.assert_allclose(rotation.undo(rotated), x, atol=tolerance)


@pytest.mark.parametrize("size", [1, 2, 12, 17, 20, 44, 60, 72, 100, 108, 300, 1000])
def test_every_value_spreads_evenly_over_all_coordinates(size: int) -> None:
    """All entries of the matrix are as large as each other, for every order that takes a part in it."""
    rotation = Rotation(size, 3)
    one = np.zeros(size)
    one[size // 2] = 1.0
    np.testing.assert_allclose(np.abs(rotation.apply(one)), rotation.padded**-0.5, rtol=1e-12)


def test_rotations_are_the_same_everywhere() -> None:
    """Fixed vectors: devices of other versions or machines must agree on every sign."""
    eight = Rotation(5, 7).apply(np.arange(1.0, 6.0)) * math.sqrt(8)
    np.testing.assert_allclose(eight, [3, 15, 5, 1, -7, 5, -5, -9], atol=1e-12)
    twelve = Rotation(11, 7).apply(np.arange(1.0, 12.0)) * math.sqrt(12)
    np.testing.assert_allclose(twelve, [24, -18, 12, 4, 10, -8, -46, 34, -14, -10, 32, 16], atol=1e-12)
    assert not np.allclose(Rotation(5, 8).apply(np.arange(1.0, 6.0)), eight / math.sqrt(8))


def test_padding_costs_an_eighth_at_most() -> None:
    for size in range(1, 5000):
        padded = padded_size(size)
        assert size <= padded == padded_size(padded)
        assert padded >= padded_size(size - 1)
        assert size < 64 or padded <= 1.125 * size


def test_no_coordinate_is_beyond_the_tail() -> None:
    """At a chance that 500 seeds can see; and the bound is not idle, most vectors come half as far."""
    heavy, dense, beta = np.r_[np.ones(30), np.zeros(970)], np.random.default_rng(1).normal(size=1000), 0.05
    padded = padded_size(1000)
    for x in (heavy, dense):
        bound = tail(padded, beta) * np.linalg.norm(x) / math.sqrt(padded)
        peaks = np.array([np.abs(Rotation(1000, seed).apply(x)).max() for seed in range(500)])
        assert (peaks > bound).mean() <= beta
    assert (peaks > bound / 2).all()


# -- encoding: sums -----------------------------------------------------------------------------------------------


@given(
    seed=seeds,
    size=st.integers(1, 200),
    clients=st.integers(1, 30),
    bits=st.sampled_from([16, 32]),
    rotate=st.booleans(),
)
@quick
def test_sums_decode_to_within_one_step_per_client(
    seed: int, size: int, clients: int, bits: Literal[16, 32], rotate: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, size=(clients, size))
    x *= 3.0 / np.maximum(3.0, np.linalg.norm(x, axis=1, keepdims=True))
    encoding = encoding_for(
        size,
        bits,
        users=clients,
        clip_norm=3.0,
        numbers=2,
        rotation_seed=seed if rotate or bits == 16 else None,
    )
    total = summed(encoding, x, seed)
    assert total.dtype == np.dtype(f"<u{bits // 8}") and total.shape == (encoding.length,)
    values, numbers = encoding.decode(total)
    # A rounding moves each of the carried integers by less than 1.
    apart = float(np.linalg.norm(values - x.sum(axis=0)))
    assert apart <= clients * math.sqrt(encoding.carried) / encoding.scale * (1 + 1e-9)
    assert not numbers.any()


def test_rounding_is_right_on_average() -> None:
    encoding = Encoding(4000, 32, 10.0)
    for value in (0.123, -0.777):
        values, _ = encoding.decode(summed(encoding, np.full((1, 4000), value)))
        steps = values * 10.0
        assert set(np.unique(np.rint(steps))) == {math.floor(10 * value), math.floor(10 * value) + 1}
        # Hoeffding: wrong with probability 2 exp(-2 * 4000 * 0.06^2) < 1e-12.
        assert abs(steps.mean() - 10.0 * value) < 0.06


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_everyone_at_the_bound_in_one_value_never_wraps_with_32_bits(sign: float) -> None:
    """The worst case: one value holds all of C, and every rounding goes away from zero."""
    users, uniform = 50, largest if sign > 0 else np.zeros
    encoding = encoding_for(3, 32, users=users, clip_norm=0.7, numbers=0, rotation_seed=None)
    x = np.array([0.0, sign * 0.7, 0.0])
    total = np.zeros(encoding.length, dtype=encoding.dtype)
    for _ in range(users):
        total += encoding.encode(x, NONE, uniform)
    values, _ = encoding.decode(total)
    np.testing.assert_allclose(values, users * x, atol=users / encoding.scale)
    # No room is wasted: a hundredth more would have wrapped around.
    assert 1.01 * users * 0.7 * encoding.scale > 2**31


def test_a_sum_wraps_exactly_beyond_half_of_the_modulus() -> None:
    encoding = Encoding(2, 32, 1.0)
    for reached, decoded in ((2**31 - 1, 2**31 - 1), (2**31, -(2**31))):
        parts = [
            encoding.encode(np.array([part, -part]), NONE, np.zeros) for part in (2.0**30, reached - 2.0**30)
        ]
        values, _ = encoding.decode(parts[0] + parts[1])
        assert values.tolist() == [decoded, -reached]
    below, _ = encoding.decode(encoding.encode(np.array([-(2.0**31) - 1, 0.0]), NONE, np.zeros))
    assert below[0] == 2**31 - 1


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9, 1.0])
def test_16_bits_hold_100_users_however_much_they_agree(correlation: float) -> None:
    """Unlike a scale for users who are independent, with which sums wrap around as soon as they agree."""
    n, size = 100, 4096
    x = correlated(n, size, correlation)
    encoding = encoding_for(size, 16, users=n, clip_norm=1.0, numbers=0, rotation_seed=5)
    careless = Encoding(size, 16, encoding.scale * math.sqrt(n), 0, 5)
    apart = {each: relative_error(each, x) for each in (encoding, careless)}
    assert apart[encoding] < (0.02 if correlation == 0.0 else 0.004)
    if correlation == 0.0:
        assert apart[careless] < 0.002
    else:
        assert apart[careless] > 0.5
    wide = encoding_for(size, 32, users=n, clip_norm=1.0, numbers=0, rotation_seed=None)
    assert relative_error(wide, x) < 1e-5


def correlated(n: int, size: int, correlation: float) -> Floats:
    """[n, size] vectors of norm 1."""
    rng = np.random.default_rng(7)
    own, common = rng.normal(size=(n, size)), rng.normal(size=size)
    x = math.sqrt(correlation) * common + math.sqrt(1.0 - correlation) * own
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def relative_error(encoding: Encoding, x: Floats) -> float:
    """L2, of the sum."""
    values, _ = encoding.decode(summed(encoding, x))
    return float(np.linalg.norm(values - x.sum(axis=0)) / np.linalg.norm(x.sum(axis=0)))


@given(seed=seeds, bits=st.sampled_from([16, 32]), size=st.integers(0, 20), clients=st.integers(1, 9))
@quick
def test_integers_are_carried_as_they_are(seed: int, bits: Literal[16, 32], size: int, clients: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.integers(-(2**40), 2**40, size=(clients, size))
    encoding = Encoding(size, bits, 1.0, 1)
    total = np.zeros(encoding.length, dtype=encoding.dtype)
    for row in whole:
        total += encoding.carry(row, np.array([2.0]))
    integers, numbers = encoding.decode_integers(total)
    assert integers.dtype == np.int64
    np.testing.assert_array_equal(integers, whole.sum(axis=0) % 2**bits)
    assert numbers.tolist() == [2.0 * clients]


# -- encoding: numbers --------------------------------------------------------------------------------------------


@given(
    bits=st.sampled_from([16, 32]),
    rows=st.lists(st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=3), min_size=1, max_size=7),
)
@quick
def test_numbers_are_exact_in_units_of_2_to_the_minus_20(
    bits: Literal[16, 32], rows: list[list[int]]
) -> None:
    encoding = Encoding(0, bits, 1.0, 3)
    # float64 holds 53 bits: anything longer is rounded before it is a number at all.
    given_ = [[float(value >> 12) for value in row] for row in rows]
    total = np.zeros(encoding.length, dtype=encoding.dtype)
    for row in given_:
        total += encoding.encode(NONE, np.array(row) / 2.0**20, np.zeros)
    _, numbers = encoding.decode(total)
    assert numbers.tolist() == [sum(column) / 2.0**20 for column in zip(*given_, strict=True)]


@pytest.mark.parametrize("bits", [16, 32])
def test_carries_of_the_largest_sum_do_not_meet(bits: Literal[16, 32]) -> None:
    """2^12 clients whose limbs are all ones: minus one unit."""
    encoding = Encoding(0, bits, 1.0, 1)
    one = encoding.encode(NONE, np.array([-(2.0**-20)]), np.zeros)
    assert set(one.tolist()) == {2 ** (bits // 4) - 1}
    _, numbers = encoding.decode((one.astype(np.uint64) * 4096).astype(encoding.dtype))
    assert numbers[0] == -4096 * 2.0**-20


# -- encoding: refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "numbers"), [([1.0], [0.0]), ([1.0, 1.0], [])])
def test_another_shape_is_refused(values: list[float], numbers: list[float]) -> None:
    with pytest.raises(AggregationRefused) as caught:
        Encoding(2, 32, 1.0, 1).encode(np.array(values), np.array(numbers), np.zeros)
    assert caught.value.reason == Reason.FORMAT and "\n" not in str(caught.value)


@given(
    values=st.lists(st.floats(width=64), min_size=3, max_size=3),
    numbers=st.lists(st.floats(width=64), min_size=2, max_size=2),
    bits=st.sampled_from([16, 32]),
)
def test_no_value_leads_to_a_refusal_or_to_another_shape(
    values: list[float], numbers: list[float], bits: Literal[16, 32]
) -> None:
    """An error here would depend on data: what is not finite counts as zero, what is too large as the largest."""
    encoding = Encoding(3, bits, 10.0, 2, 7)
    made = encoding.encode(np.array(values), np.array(numbers), np.zeros)
    assert made.shape == (encoding.length,) and made.dtype == encoding.dtype
    _, back = encoding.decode(made)
    for value, read in zip(numbers, back, strict=True):
        wanted = min(max(value, -(2.0**42)), 2.0**42) if math.isfinite(value) else 0.0
        assert read == pytest.approx(wanted, abs=2.0**-20)
    clean = np.where(np.isfinite(values), values, 0.0)
    if np.abs(clean).max() < 1e6:
        np.testing.assert_array_equal(made, encoding.encode(clean, np.array(numbers), np.zeros))


@pytest.mark.parametrize("total", [np.zeros(9, "<u4"), np.zeros(10, "<u2"), np.zeros(10, "<i4")])
def test_a_sum_of_another_form_is_refused(total: NDArray[Any]) -> None:
    encoding = Encoding(2, 32, 1.0, 1)
    assert encoding.length == 10
    for read in (encoding.decode, encoding.decode_integers):
        with pytest.raises(AggregationRefused, match="sum is"):
            read(total)


def test_settings_without_room_are_refused() -> None:
    with pytest.raises(AggregationRefused, match=r"16 bits .* without a rotation"):
        encoding_for(100, 16, users=3, clip_norm=1.0, numbers=0, rotation_seed=None)
    with pytest.raises(AggregationRefused, match="sums over 2147483647 users do not fit 32 bits"):
        encoding_for(100, 32, users=2**31 - 1, clip_norm=1.0, numbers=0, rotation_seed=None)


def test_noise_on_the_devices_has_room() -> None:
    quiet, noisy = (
        encoding_for(9, 32, users=10, clip_norm=1.0, numbers=0, rotation_seed=None, noise_std=std)
        for std in (0.0, 5.0)
    )
    assert noisy.scale * (10.0 + 8 * 5.0) == pytest.approx(quiet.scale * 10.0)
