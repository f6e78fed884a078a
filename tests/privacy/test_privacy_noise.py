"""Noise: the right distributions, streams that never repeat, and a grid that no secret influences."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick
from scipy import stats

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy import _skellam as skellam
from fedrec.privacy.noise import SKELLAM_TABLE_ERROR, SNAP_BITS, NoiseSource, snap

#: The seeds are fixed, so a test either always holds or never; 1e-4 then means that no luck was needed.
P_VALUE = 1e-4
wide_seeds = st.integers(-(2**70), 2**70)


# -- streams ------------------------------------------------------------------------------------------------------


def test_sources_without_a_seed_differ_and_so_do_their_children() -> None:
    parent = NoiseSource()
    sources = [parent, NoiseSource(), parent.derive("round", 1), parent.derive("round", 1)]
    assert len({source.words(4).tobytes() for source in sources}) == 4
    assert not any(source.seeded for source in sources)


@given(seed=wide_seeds, round_=st.integers(0, 2**40))
@quick
def test_the_same_seed_and_labels_give_the_same_stream_and_others_do_not(seed: int, round_: int) -> None:
    same = [NoiseSource(seed).derive("noise", round_).words(8) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    others = [
        NoiseSource(seed),
        NoiseSource(seed + 2**32).derive("noise", round_),
        NoiseSource(seed + 2**64).derive("noise", round_),
        NoiseSource(-seed - 1).derive("noise", round_),
        NoiseSource(seed).derive("noise", round_ + 1),
        NoiseSource(seed).derive("noise", str(round_)),
        NoiseSource(seed).derive("noise").derive(round_, 0),
        NoiseSource(seed).derive(f"noise{round_}"),
    ]
    assert len({source.words(8).tobytes() for source in others} | {same[0].tobytes()}) == 9


def test_a_child_does_not_depend_on_what_its_parent_has_drawn() -> None:
    parent = NoiseSource(7)
    first = parent.derive("node", 3).words(5)
    parent.normal(11, 1.0)
    np.testing.assert_array_equal(first, parent.derive("node", 3).words(5))
    np.testing.assert_array_equal(first, NoiseSource(7).derive("node").derive(3).words(5))


def test_a_stream_goes_on_and_does_not_depend_on_the_size_of_the_draws() -> None:
    whole = NoiseSource(1).words(40_000)
    source = NoiseSource(1)
    parts = np.concatenate([source.words(n) for n in (1, 0, 8191, 8193, 23_615)])
    np.testing.assert_array_equal(whole, parts)
    assert len(np.unique(whole)) == len(whole)


def test_a_source_cannot_be_copied() -> None:
    for source in (NoiseSource(), NoiseSource(3)):
        for copier in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                copier(source)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_repeat_the_noise_of_its_parent() -> None:
    source = NoiseSource()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(source.words(4).tolist()))
    child.start()
    seen = ours.recv()
    child.join()
    assert seen != source.words(4).tolist()


def test_noise_is_aes_256_in_counter_mode() -> None:
    """Against the cipher block by block, so that a changed mode or a repeated block shows."""
    import hashlib

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(b'fedrec noise, not private:[5, "x"]').digest()
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    counter = b"".join(i.to_bytes(16, "big") for i in range(3))
    expected = np.frombuffer(block.update(counter), dtype="<u8")
    np.testing.assert_array_equal(NoiseSource(5).derive("x").words(6), expected)


# -- uniforms, coins, normals -------------------------------------------------------------------------------------


def test_uniforms_are_uniform() -> None:
    drawn = NoiseSource(1).uniform(200_000)
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    assert stats.kstest(drawn, "uniform").pvalue > P_VALUE
    lowest_bits = (drawn * 2.0**53).astype(np.int64) & 1
    assert stats.binomtest(int(lowest_bits.sum()), len(drawn)).pvalue > P_VALUE


@pytest.mark.parametrize("p", [0.0, 1e-4, 0.3, 0.5, 1.0])
def test_coins_fall_as_often_as_asked(p: float) -> None:
    coins = NoiseSource(2).bernoulli(p, 100_000)
    assert stats.binomtest(int(coins.sum()), len(coins), p).pvalue > P_VALUE


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_coin_without_a_probability_is_refused(p: float) -> None:
    with pytest.raises(PrivacyRefused, match="expected a number from 0 to 1"):
        NoiseSource(2).bernoulli(p, 3)


@pytest.mark.parametrize("std", [1e-3, 1.0, 2.5e4])
def test_normals_are_normal_in_both_halves_and_independent(std: float) -> None:
    drawn = NoiseSource(3).normal(200_000, std)
    assert abs(drawn.mean()) < 4 * std / np.sqrt(len(drawn))
    assert abs(drawn.std() / std - 1) < 4 / np.sqrt(2 * len(drawn))
    for part in (drawn[:100_000], drawn[100_000:]):
        assert stats.kstest(part, "norm", (0, std)).pvalue > P_VALUE
    # The two outputs of one pair, and neighbours: neither the values nor their sizes go together.
    for a, b in ((drawn[:100_000], drawn[100_000:]), (drawn[:-1], drawn[1:])):
        assert stats.pearsonr(a, b).pvalue > P_VALUE
        assert stats.pearsonr(a**2, b**2).pvalue > P_VALUE
    assert (
        stats.binomtest(int((np.abs(drawn) > 4 * std).sum()), len(drawn), 2 * stats.norm.sf(4)).pvalue
        > P_VALUE
    )


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_normals_come_in_the_wanted_number(size: int) -> None:
    assert NoiseSource().normal(size, 1.0).shape == (size,)
    assert not NoiseSource().normal(size, 0.0).any()


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_noise_of_no_meaningful_size_is_refused(std: float) -> None:
    with pytest.raises(PrivacyRefused, match="expected a finite number, 0 or more"):
        NoiseSource().normal(3, std)


# -- Skellam ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.02, 1.0, 30.0, 700.0, 5e3, 1e6, 1e10])
def test_skellam_draws_have_the_distribution_they_should(variance: float) -> None:
    """Chi-square over at most 40 bins of equal probability, exact up to 1e6; the normal limit above."""
    drawn = NoiseSource(4).skellam(100_000, variance)
    assert drawn.dtype == np.int64
    if variance <= 1e4:
        cdf = lambda k: stats.skellam.cdf(k, variance / 2, variance / 2)  # noqa: E731
    else:
        cdf = lambda k: stats.norm.cdf((k + 0.5) / np.sqrt(variance))  # noqa: E731
    edges = np.unique(np.quantile(drawn, np.linspace(0, 1, 40), method="lower"))[:-1]
    expected = np.diff(np.concatenate([[0.0], cdf(edges.astype(float)), [1.0]])) * len(drawn)
    counted = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(expected))
    keep = expected > 5
    statistic = (np.square(counted - expected) / expected)[keep].sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > P_VALUE
    kurtosis = 1 / variance
    assert abs(drawn.var() / variance - 1) < 5 * np.sqrt((2 + kurtosis) / len(drawn))
    assert abs(drawn.mean()) < 5 * np.sqrt(variance / len(drawn))


@pytest.mark.parametrize("variance", [1e-300, 1e-3, 0.5, 25.0, 900.0, 4095.9])
def test_the_table_is_as_close_as_it_says(variance: float) -> None:
    """Total variation distance from values of 40 digits: below 2^-47, and below the stated bound."""
    table = skellam.cumulative(variance)
    weights = np.diff(np.concatenate([[0], table.astype(object)]))
    assert table[-1] == 2**63 and (weights >= 0).all()
    distance = mpmath.mpf(0)
    with mpmath.workdps(40):
        v = mpmath.mpf(variance)
        step = max(1, len(weights) // 400)
        for k in range(0, len(weights), step):
            exact = mpmath.besseli(k, v) * mpmath.exp(-v) * (1 if k == 0 else 2)
            distance += abs(mpmath.mpf(int(weights[k])) / 2**63 - exact) * (1 if k == 0 else step)
        cut = mpmath.besseli(len(weights), v) * mpmath.exp(-v) * 4
    assert distance / 2 + cut < 2.0**-47 < SKELLAM_TABLE_ERROR


@pytest.mark.parametrize("variance", [5e3, 2e4])
def test_the_series_is_exact_where_it_is_used(variance: float) -> None:
    k = np.array([0, 1, 7, 70, 300])
    with mpmath.workdps(40):
        exact = [
            float(mpmath.besseli(int(i), variance, maxterms=10**6) * mpmath.exp(-mpmath.mpf(variance)))
            for i in k
        ]
    np.testing.assert_allclose(skellam.probabilities(variance)[k], exact, rtol=2e-14)


def test_the_two_ways_to_the_probabilities_meet() -> None:
    k = np.arange(655, dtype=np.float64)
    series = skellam._series(k, 4095.9)
    np.testing.assert_allclose(series, skellam.probabilities(4095.9)[:655], rtol=1e-12)
    assert 2 * skellam.probabilities(1e9).sum() - skellam.probabilities(1e9)[0] == pytest.approx(1, abs=1e-13)


def test_skellam_shares_add_up_to_skellam() -> None:
    """The sum of 5 shares against one draw of the whole variance: two-sample test, and exact third cumulants."""
    source = NoiseSource(5)
    shares = sum(source.skellam(60_000, 1.2) for _ in range(5))
    values = np.arange(-6, 7)
    counts = [[(np.clip(x, -6, 6) == v).sum() for v in values] for x in (shares, source.skellam(60_000, 6.0))]
    assert stats.chi2_contingency(np.array(counts)).pvalue > P_VALUE


def test_beyond_one_table_draws_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skellam, "TABLE_VARIANCE", 3.0)
    drawn = NoiseSource(6).skellam(50_000, 10.0)
    assert skellam.cumulative(2.5).size < skellam.cumulative(10.0).size
    values, counts = np.unique(np.clip(drawn, -9, 9), return_counts=True)
    inner = stats.skellam.pmf(values, 5, 5)
    inner[0], inner[-1] = stats.skellam.cdf(-9, 5, 5), stats.skellam.sf(8, 5, 5)
    assert stats.chisquare(counts, inner / inner.sum() * counts.sum()).pvalue > P_VALUE


def test_no_variance_no_noise_and_senseless_variances_are_refused() -> None:
    assert not NoiseSource().skellam(10, 0.0).any()
    for variance in (-1.0, float("nan"), float("inf"), 1e15):
        with pytest.raises(PrivacyRefused, match="variance of Skellam noise"):
            NoiseSource().skellam(1, variance)


# -- the grid -----------------------------------------------------------------------------------------------------


@given(std=st.floats(1e-12, 1e12), values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
@quick
def test_snapped_values_lie_on_one_power_of_two_grid_and_hardly_move(std: float, values: list[float]) -> None:
    noisy = np.array(values) * std
    out = snap(noisy, std)
    grid = 2.0 ** (np.floor(np.log2(std)) - SNAP_BITS)
    np.testing.assert_array_equal(out / grid, np.rint(out / grid))
    assert np.abs(out - noisy).max() <= grid / 2 <= std * 2.0**-SNAP_BITS / 2
    np.testing.assert_array_equal(snap(out, std), out)


def test_without_noise_nothing_is_rounded() -> None:
    values = np.array([1 / 3, 2.0**-60])
    np.testing.assert_array_equal(snap(values, 0.0), values)
