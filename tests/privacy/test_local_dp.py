"""Local differential privacy: unbiased estimates, stated errors that hold, and the epsilon that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick
from scipy import stats

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.accounting import gaussian_epsilon
from fedrec.privacy.local_dp import MAX_EPSILON, KaryResponse, LocalGaussian, RandomisedResponse
from fedrec.privacy.noise import NoiseSource

epsilons = st.floats(0.01, MAX_EPSILON)


# -- randomised response ------------------------------------------------------------------------------------------


@given(epsilon=epsilons)
@quick
def test_no_answer_is_more_than_e_to_the_epsilon_likelier_under_one_truth(epsilon: float) -> None:
    p = RandomisedResponse(epsilon).truth
    assert math.log(p / (1 - p)) == pytest.approx(epsilon, rel=1e-6)


@given(epsilon=epsilons, k=st.integers(2, 1000))
@quick
def test_k_answers_keep_the_same_promise_and_add_up_to_one(epsilon: float, k: int) -> None:
    response = KaryResponse(epsilon, k)
    assert math.log(response.truth / response.other) == pytest.approx(epsilon, rel=1e-6)
    assert response.truth + (k - 1) * response.other == pytest.approx(1)
    if k == 2:
        assert response.truth == pytest.approx(RandomisedResponse(epsilon).truth)


@pytest.mark.parametrize("truth", [False, True])
def test_coins_follow_the_stated_probability(truth: bool) -> None:
    response = RandomisedResponse(1.0)
    said = response.perturb(np.full(50_000, truth), NoiseSource(1))
    assert stats.binomtest(int((said == truth).sum()), 50_000, math.e / (1 + math.e)).pvalue > 1e-4


@pytest.mark.parametrize("have", [0, 130, 1000])
def test_the_estimate_is_unbiased_and_its_error_is_as_stated(have: int) -> None:
    response, bits = RandomisedResponse(0.8), np.arange(1000) < have
    noise = NoiseSource(2)
    estimates = [response.estimate(int(response.perturb(bits, noise).sum()), 1000) for _ in range(600)]
    values, std = np.array([e.value for e in estimates]), estimates[0].std
    assert abs(values.mean() - have) < 4 * std / np.sqrt(600)
    assert abs(values.std() / std - 1) < 4 / np.sqrt(2 * 600)


def test_k_ary_estimates_are_unbiased_and_their_errors_as_stated() -> None:
    response, have = KaryResponse(1.5, 4), np.array([500, 300, 200, 0])
    answers, noise = np.repeat(np.arange(4), have), NoiseSource(3)
    said = [response.perturb(answers, noise) for _ in range(600)]
    found = np.array([response.estimate(np.bincount(each, minlength=4))[0] for each in said])
    std = response.estimate(np.round(have * (response.truth - response.other) + 1000 * response.other))[1]
    assert (np.abs(found.mean(axis=0) - have) < 4 * std / np.sqrt(600)).all()
    assert (np.abs(found.std(axis=0) / std - 1) < 0.15).all()
    lies = np.concatenate(said)[np.tile(answers, 600) == 3 - 3]
    assert stats.chisquare(np.bincount(lies, minlength=4)[1:]).pvalue > 1e-4


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 21.0, float("nan"), float("inf")])
def test_a_senseless_epsilon_is_refused(epsilon: float) -> None:
    for made in (lambda: RandomisedResponse(epsilon), lambda: KaryResponse(epsilon, 3)):
        with pytest.raises(PrivacyRefused, match="epsilon of randomised response"):
            made()


def test_senseless_answers_are_refused() -> None:
    with pytest.raises(PrivacyRefused, match="expected 2 or more"):
        KaryResponse(1.0, 1)
    for answers in ([0, 3], [-1, 0]):
        with pytest.raises(PrivacyRefused, match="expected 0 to 2"):
            KaryResponse(1.0, 3).perturb(np.array(answers), NoiseSource())
    assert KaryResponse(1.0, 3).perturb(np.zeros(0, dtype=np.int64), NoiseSource()).shape == (0,)


# -- short vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
def test_the_noise_is_the_least_that_keeps_the_target(epsilon: float) -> None:
    """Two vectors of norm C are up to 2C apart; the exact curve at that distance gives epsilon back."""
    local = LocalGaussian(epsilon, 1e-6, clip_norm=3.0)
    spent = gaussian_epsilon(2 * 3.0 / local.std, 1e-6)
    assert epsilon * (1 - 1e-3) <= spent <= epsilon


def test_a_short_vector_is_bounded_noised_and_found_again() -> None:
    local, users = LocalGaussian(2.0, 1e-5, clip_norm=1.0), 4000
    vectors = np.tile([0.6, 0.0, -0.8], (users, 1))
    total, std = local.estimate(local.perturb(vectors, NoiseSource(4)))
    np.testing.assert_allclose(total, users * vectors[0], atol=4 * std)
    noise = local.perturb(vectors, NoiseSource(5)) - vectors
    assert noise.std() == pytest.approx(local.std, rel=0.03)
    assert std == pytest.approx(local.std * np.sqrt(users))


def test_long_vectors_are_clipped_and_broken_ones_count_as_zero() -> None:
    local = LocalGaussian(5.0, 1e-5, clip_norm=2.0)
    given_ = np.array([[30.0, 40.0], [np.nan, 1.0], [np.inf, 0.0], [0.3, 0.4], [1e300, 1e300]])
    bounded = np.array([[1.2, 1.6], [0.0, 0.0], [0.0, 0.0], [0.3, 0.4], [0.0, 0.0]])
    # The same stream for both, so that the noise cancels but for the grid.
    np.testing.assert_allclose(
        local.perturb(given_, NoiseSource(6)), local.perturb(bounded, NoiseSource(6)), atol=1e-5
    )
