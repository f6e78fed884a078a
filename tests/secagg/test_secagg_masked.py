"""What a masked vector gives away: nothing that these tests can see, and each of them sees a planted weakness."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from secagg_helpers import Cohort

from fedrec.secagg._masks import mask

SENDER = 1


def one_masked(values: NDArray[Any], bits: int, n: int = 4) -> NDArray[Any]:
    """What the server sees of a device that sends these values."""
    cohort = Cohort.of(n, len(values), bits=bits)
    cohort.vectors[SENDER] = values
    cohort.run()
    seen: NDArray[Any] = cohort.sent["mask"][SENDER]["masked"]
    return seen


def bits_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.unpackbits(values.view(np.uint8))


def chi_square(values: NDArray[Any]) -> float:
    """Of bytes; 255 degrees of freedom, standard deviation 22.6."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("bits", [16, 32])
def test_a_masked_vector_of_zeros_looks_like_chance(bits: int) -> None:
    seen = one_masked(np.zeros(1 << 16, dtype=f"<u{bits // 8}"), bits)
    ones = bits_of(seen)
    assert abs(ones.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(ones))
    assert chi_square(seen) < 255 + 6 * 22.6
    assert chi_square(np.zeros(1 << 16, dtype=np.uint32)) > 1e6


def test_which_rows_of_an_update_are_touched_does_not_show() -> None:
    """One device's sparse update under masks: rows that are zero and rows that are not look alike."""
    rows, width = 2000, 32
    touched = np.random.default_rng(1).random(rows) < 0.05
    values = np.zeros((rows, width), dtype="<u4")
    values[touched] = np.random.default_rng(2).integers(1, 1000, size=(int(touched.sum()), width))
    seen = one_masked(values.reshape(-1), 32).reshape(rows, width)
    for score in (lambda x: x.mean(axis=1), lambda x: np.unpackbits(x.view(np.uint8), axis=1).mean(axis=1)):
        assert abs(auc(score(seen), touched) - 0.5) < 0.15
        assert auc(score(values), touched) > 0.99


def auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    hits = int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(scores) - hits)))


def linear_complexity(bits: NDArray[np.uint8]) -> int:
    """Length of the shortest linear recurrence over GF(2) (Berlekamp and Massey), bits as Python integers."""
    current, before, length, gap = 1, 1, 0, 1
    history = 0
    for position, bit in enumerate(bits.tolist()):
        history = history << 1 | bit
        if (current & history).bit_count() & 1:
            kept = current
            current ^= before << gap
            if 2 * length <= position:
                length, before, gap = position + 1 - length, kept, 0
        gap += 1
    return length


def low_bits_of_twister(size: int, streams: int) -> NDArray[np.uint8]:
    """The lowest bit of sums of Mersenne twisters, which obeys one recurrence of length 19937."""
    total = np.zeros(size, dtype=np.uint32)
    for seed in range(streams):
        total += np.random.RandomState(seed).randint(0, 2**32, size=size, dtype=np.uint32)
    return (total & 1).astype(np.uint8)


def test_no_linear_recurrence_runs_through_a_masked_vector() -> None:
    """Masks of generators that are linear over GF(2) can be seen through; the test finds those, and not ours."""
    size = 42_000
    ours = (one_masked(np.zeros(size, dtype="<u4"), 32) & 1).astype(np.uint8)
    assert abs(linear_complexity(ours) - size / 2) < 40
    assert linear_complexity(low_bits_of_twister(size, 3)) == 19937


def register(size: int) -> NDArray[np.uint8]:
    """A linear feedback shift register of 31 places (x^31 + x^28 + 1)."""
    bits = np.ones(size, dtype=np.uint8)
    for i in range(31, size):
        bits[i] = bits[i - 3] ^ bits[i - 31]
    return bits


@pytest.mark.parametrize("bits", [16, 32])
def test_the_low_bits_of_one_mask_stream_are_no_short_recurrence_either(bits: Literal[16, 32]) -> None:
    stream = (mask(4000, bits, bytes(range(32))) & 1).astype(np.uint8)
    assert abs(linear_complexity(stream) - 2000) < 40
    assert linear_complexity(register(4000)) <= 31


def rank(matrix: NDArray[np.uint8]) -> int:
    """Over GF(2); rows as Python integers."""
    rows = [int.from_bytes(np.packbits(row).tobytes(), "big") for row in matrix]
    found = 0
    while rows:
        pivot = max(rows)
        rows.remove(pivot)
        if pivot:
            found += 1
            top = pivot.bit_length()
            rows = [row ^ pivot if row.bit_length() == top else row for row in rows]
    return found


def rank_surprise(bits: NDArray[np.uint8]) -> float:
    """Chi-square, 2 degrees of freedom, of ranks of 64 x 64 matrices; 0.2888, 0.5776, 0.1336 are full, -1, less."""
    ranks = np.array([rank(matrix) for matrix in bits[: len(bits) // 4096 * 4096].reshape(-1, 64, 64)])
    counts = np.array([(ranks == 64).sum(), (ranks == 63).sum(), (ranks < 63).sum()])
    expected = len(ranks) * np.array([0.2888, 0.5776, 0.1336])
    return float(((counts - expected) ** 2 / expected).sum())


def test_matrices_of_low_bits_have_the_ranks_of_chance() -> None:
    """Marsaglia's rank test; 30 is passed by chance but for 3 in ten millions."""
    size = 100 * 4096
    ours = (one_masked(np.zeros(size, dtype="<u2"), 16) & 1).astype(np.uint8)
    assert rank_surprise(ours) < 30
    # The register repeats its 31 states whatever the row: ranks are 31 at most.
    assert rank_surprise(register(20 * 4096)) > 100


@pytest.mark.parametrize("bits", [16, 32])
def test_neighbouring_words_of_a_masked_vector_are_unrelated(bits: int) -> None:
    seen = one_masked(np.zeros(1 << 15, dtype=f"<u{bits // 8}"), bits).astype(np.float64)
    ramp = np.cumsum(np.full(1 << 15, 2.0**bits / 1000)) % 2**bits
    for lag in (1, 2, 4, 8, 64):
        limit = 5 / np.sqrt(len(seen) - lag)
        assert abs(np.corrcoef(seen[:-lag], seen[lag:])[0, 1]) < limit
        assert abs(np.corrcoef(ramp[:-lag], ramp[lag:])[0, 1]) > limit


@pytest.mark.parametrize("bits", [16, 32])
def test_vectors_of_two_devices_under_masks_are_unrelated(bits: int) -> None:
    """Even those of equal input, which share a pair's mask with opposite signs."""
    cohort = Cohort.of(4, 1 << 15, bits=bits)
    cohort.vectors[:] = cohort.vectors[0]
    cohort.run()
    sent = [cohort.sent["mask"][place]["masked"] for place in range(4)]
    for one, other in itertools.combinations(sent, 2):
        for combined in (one + other, one - other):
            ones = bits_of(combined)
            assert abs(ones.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(ones))
            assert chi_square(combined) < 255 + 6 * 22.6


def test_a_masked_vector_tells_nothing_of_its_input() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**32, size=1 << 15, dtype=np.uint64).astype("<u4")
    seen = one_masked(values, 32)
    corr = np.corrcoef(bits_of(values).astype(float), bits_of(seen).astype(float))[0, 1]
    assert abs(corr) < 5 / np.sqrt(len(bits_of(seen)))
    # A mask without every eighth bit would not do.
    weak = values ^ (seen & np.uint32(0x7F7F7F7F))
    corr = np.corrcoef(bits_of(values).astype(float), bits_of(weak).astype(float))[0, 1]
    assert abs(corr) > 5 / np.sqrt(len(bits_of(seen)))
