"""Epsilon and delta of Renyi divergences, written without dp-accounting, are those of dp-accounting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given
from hypothesis import strategies as st

from fedrec.privacy._renyi import ORDERS, gaussian_rdp, rdp_delta, rdp_epsilon


@given(z=st.floats(0.05, 50), count=st.integers(0, 200), power=st.floats(1, 12), target=st.floats(0.001, 60))
def test_conversions_are_those_of_dp_accounting(z: float, count: int, power: float, target: float) -> None:
    divergences, delta = count * gaussian_rdp(z, 1.0), 10.0**-power
    found, _ = rdp_privacy_accountant.compute_epsilon(ORDERS, divergences, delta)
    assert rdp_epsilon(divergences, delta) == pytest.approx(float(found), rel=1e-12, abs=1e-12)
    known, _ = rdp_privacy_accountant.compute_delta(ORDERS, divergences, target)
    assert rdp_delta(divergences, target) == pytest.approx(float(known), rel=1e-9)


def test_divergences_without_a_bound_bound_nothing() -> None:
    nothing = np.full(len(ORDERS), np.inf)
    assert math.isinf(rdp_epsilon(nothing, 1e-6)) and rdp_delta(nothing, 3.0) == 1.0
    assert rdp_epsilon(np.zeros(len(ORDERS)), 1e-6) == 0.0
