"""Probabilities of small Skellam noise, by a recurrence in numpy, are those of scipy's Bessel functions."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ive

from fedrec.privacy._skellam import _SERIES_FROM, _recurrence


@given(power=st.floats(-9, math.log10(_SERIES_FROM) - 1e-6))
def test_the_recurrence_gives_bessel_functions(power: float) -> None:
    variance = 10.0**power
    size = math.ceil(9.6 * math.sqrt(variance)) + 40
    found, expected = _recurrence(size, variance), ive(np.arange(size, dtype=float), variance)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-16)
    assert abs(found[0] + 2 * found[1:].sum() - 1) < 1e-12
