"""Adaptive clipping: the norm finds its quantile from both sides, with noise, and not the other way round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.adaptive import bit_sum, next_clip_norm
from fedrec.privacy.noise import NoiseSource

USERS = 1000


def followed(start: float, quantile: float, count_std: float, rounds: int = 200) -> list[float]:
    """Clip norms over the rounds, for norms uniform in 0.5 to 1.5."""
    norms = 0.5 + NoiseSource(1).uniform(USERS)
    source, clip_norm, seen = NoiseSource(2), start, []
    for _ in range(rounds):
        total = bit_sum(USERS, int((norms > clip_norm).sum())) + source.normal(1, count_std)[0]
        clip_norm = next_clip_norm(clip_norm, total, USERS, quantile, 0.2)
        seen.append(clip_norm)
    return seen


@pytest.mark.parametrize("count_std", [0.0, 50.0])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.1, 10.0])
def test_the_norm_converges_to_the_quantile_from_both_sides(
    start: float, quantile: float, count_std: float
) -> None:
    """With noise of 5 % of the users on the count, the mean of the last 100 rounds is what is compared."""
    seen = followed(start, quantile, count_std)
    assert np.mean(seen[100:]) == pytest.approx(0.5 + quantile, abs=0.06)
    assert np.sign(seen[0] - start) == np.sign(0.5 + quantile - start)


def test_the_first_step_is_the_papers() -> None:
    """C exp(-0.2 (b - 0.5)): all clipped is b = 0, none clipped b = 1, half of a half cohort b = 1/2."""
    assert next_clip_norm(2.0, bit_sum(10, 10), 10, 0.5, 0.2) == pytest.approx(2 * np.exp(0.1))
    assert next_clip_norm(2.0, bit_sum(10, 0), 10, 0.5, 0.2) == pytest.approx(2 * np.exp(-0.1))
    assert next_clip_norm(2.0, bit_sum(6, 3), 12, 0.5, 0.2) == 2.0


@given(users=st.integers(1, 10**6), clipped=st.integers(0, 10**6))
@quick
def test_leaving_a_user_out_changes_the_count_by_a_half(users: int, clipped: int) -> None:
    clipped = min(clipped, users)
    if clipped:
        assert bit_sum(users, clipped) - bit_sum(users - 1, clipped - 1) == -0.5
    if clipped < users:
        assert bit_sum(users, clipped) - bit_sum(users - 1, clipped) == 0.5


@given(noisy=st.floats(-1e12, 1e12), quantile=st.floats(0, 1), rate=st.floats(0, 1))
@quick
def test_one_wild_count_moves_the_norm_by_one_step_at_most(
    noisy: float, quantile: float, rate: float
) -> None:
    after = next_clip_norm(1.0, noisy, 100.0, quantile, rate)
    assert np.exp(-rate) * (1 - 1e-12) <= after <= np.exp(rate) * (1 + 1e-12)


def test_broken_numbers_are_refused() -> None:
    for norm in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PrivacyRefused, match="clip norm"):
            next_clip_norm(norm, 0.0, 10, 0.5, 0.2)
    with pytest.raises(PrivacyRefused, match="noised count"):
        next_clip_norm(1.0, float("nan"), 10, 0.5, 0.2)
