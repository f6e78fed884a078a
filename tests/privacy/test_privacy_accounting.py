from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive, logsumexp

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy._gaussian import log_normal_cdf
from fedrec.privacy._renyi import ORDERS, pure_rdp, rdp, skellam_rdp
from fedrec.privacy.accounting import (
    GaussianRelease,
    PureRelease,
    Release,
    SkellamRelease,
    calibrate,
    delta_at,
    epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    grouped_epsilon,
    summary,
    zcdp_rho,
)

# q, z, T, delta; epsilon by RDP, by PLD, with replacement, without amplification: measured with dp-accounting 0.6.
KNOWN = [
    (0.01, 1.0, 1000, 1e-6, 2.437, 2.125, 3.214, 649.0),
    (0.01, 0.6, 1000, 1e-6, 9.976, 8.711, 10.07, 1638.0),
    (0.001, 0.8, 10000, 1e-7, 2.023, 1.171, 1.501, 8461.0),
    (0.1, 1.0, 100, 1e-5, 7.904, 7.047, 10.52, 91.8),
    (0.1, 4.0, 1000, 1e-5, 3.736, 3.444, 7.489, 64.2),
    (1.0, 10.0, 100, 1e-5, 4.729, 4.377, 9.997, 4.377),
    (0.032, 1.0, 96, 1e-5, 2.659, 2.221, 2.974, 89.0),
]


@pytest.mark.parametrize(("q", "z", "steps", "delta", "by_rdp", "by_pld", "replaced", "plain"), KNOWN)
def test_known_schedules(
    q: float,
    z: float,
    steps: int,
    delta: float,
    by_rdp: float,
    by_pld: float,
    replaced: float,
    plain: float,
) -> None:
    costs = summary([GaussianRelease(z, steps, q)], delta)

    assert costs["rdp"] == pytest.approx(by_rdp, abs=6e-4)
    assert costs["pld"] == pytest.approx(by_pld, abs=6e-4)
    assert costs["replace_one"] == pytest.approx(replaced, rel=6e-4)
    assert costs["without_amplification"] == pytest.approx(plain, rel=1e-3)
    assert costs["mu"] == pytest.approx(math.sqrt(steps) / z)
    assert costs["rho"] == pytest.approx(steps / (2 * z * z))


@pytest.mark.parametrize(("q", "z", "steps", "delta"), [row[:4] for row in KNOWN[:4]])
def test_opacus_agrees_and_its_clt_accountant_states_too_little(
    q: float, z: float, steps: int, delta: float
) -> None:
    from opacus.accountants import PRVAccountant, RDPAccountant
    from opacus.accountants.analysis import gdp

    history = [(z, q, steps)]
    renyi, prv = RDPAccountant(), PRVAccountant()
    renyi.history, prv.history = history, history
    ours = [GaussianRelease(z, steps, q)]

    assert epsilon(ours, delta, "rdp") == pytest.approx(renyi.get_epsilon(delta), rel=0.01)
    # Opacus adds its own error bound of 0.01 to the estimate.
    exact = epsilon(ours, delta)
    assert prv.get_epsilon(delta) - 0.0125 <= exact <= prv.get_epsilon(delta)
    claimed = gdp.compute_eps_poisson(steps=steps, noise_multiplier=z, sample_rate=q, delta=delta)
    assert claimed < exact - 0.1


def test_clt_claims_are_never_made() -> None:
    # Three steps at q = 0.5: the CLT says 5.07, more is spent.
    assert epsilon([GaussianRelease(1.0, 3, 0.5)], 1e-5) > 5.8


@pytest.mark.parametrize(
    ("users", "cohort", "rounds", "target", "sigma"),
    [
        (6040, 302, 100, 1.0, 1.91),
        (6040, 302, 100, 3.0, 1.00),
        (6040, 604, 100, 10.0, 0.78),
        (6040, 3020, 50, 5.0, 3.00),
        (69878, 3493, 100, 3.0, 1.11),
        (138493, 69246, 50, 3.0, 5.43),
    ],
)
def test_calibration_at_the_scale_of_movielens(
    users: int, cohort: int, rounds: int, target: float, sigma: float
) -> None:
    def make(z: float) -> list[Release]:
        return [GaussianRelease(z, rounds, cohort / users)]

    delta = users**-1.1
    z = calibrate(make, target, delta)

    assert z == pytest.approx(sigma, abs=0.006)
    assert target * (1 - 5e-4) <= epsilon(make(z), delta) <= target


def test_a_rough_calibration_keeps_the_target_too() -> None:
    def make(z: float) -> list[Release]:
        return [GaussianRelease(z, 100, 0.05)]

    rough = calibrate(make, 3.0, 1e-5, rough=True)
    assert epsilon(make(rough), 1e-5) <= 3.0
    assert rough == pytest.approx(calibrate(make, 3.0, 1e-5), rel=0.02)


@pytest.mark.parametrize("target", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_calibration_from_tiny_to_absurd_targets(target: float) -> None:
    for make in (
        lambda z: [GaussianRelease(z, 3), GaussianRelease(2 * z)],
        lambda z: [SkellamRelease(100.0, 5000.0, (100.0 * z) ** 2, 2)],
    ):
        accountant = "pld" if isinstance(make(1.0)[0], GaussianRelease) else "rdp"
        if accountant == "rdp" and target < 0.1:
            continue
        z = calibrate(make, target, 1e-6, accountant)  # type: ignore[arg-type]
        assert target * 0.999 <= epsilon(make(z), 1e-6, accountant) <= target  # type: ignore[arg-type]


def test_calibration_refuses_what_no_noise_can_reach() -> None:
    with pytest.raises(PrivacyRefused, match="no amount of noise"):
        calibrate(lambda z: [GaussianRelease(z), PureRelease(2.0)], 1.0, 1e-5)
    with pytest.raises(ConfigError, match="epsilon = 0"):
        calibrate(lambda z: [GaussianRelease(z)], 0.0, 1e-5)
    assert calibrate(lambda z: [GaussianRelease(z)], math.inf, 1e-5) == 0.0


# One local epoch in batches of 8, 16 and 32 (of 20, 50 and 100 examples), so q = 1/3, 1/4, 1/4 and T = 1/q; sigma 2.
@pytest.mark.parametrize(
    ("examples", "batches", "one", "user"), [(20, 3, 1.57, 63.4), (50, 4, 1.37, 203.2), (100, 4, 1.37, 624.1)]
)
def test_example_level_privacy_says_little_about_a_user(
    examples: int, batches: int, one: float, user: float
) -> None:
    assert epsilon([GaussianRelease(2.0, batches, 1 / batches)], 1e-5) == pytest.approx(one, abs=0.006)
    assert grouped_epsilon(2.0, 1 / batches, batches, examples, 1e-5) == pytest.approx(user, rel=1e-3)


def test_grouped_epsilon_at_its_borders() -> None:
    assert grouped_epsilon(2.0, 1.0, 9, 10, 1e-5) == gaussian_epsilon(15.0, 1e-5)
    one = epsilon([GaussianRelease(2.0, 5, 0.2)], 1e-5)
    assert grouped_epsilon(2.0, 0.2, 5, 1, 1e-5) == one
    # The whole group is at most as far apart as all its members in every batch.
    assert 2 * one < grouped_epsilon(2.0, 0.2, 5, 2, 1e-5) < gaussian_epsilon(math.sqrt(5), 1e-5)
    assert grouped_epsilon(0.0, 0.2, 5, 10, 1e-5) == math.inf
    assert grouped_epsilon(1.0, 0.0, 5, 10, 1e-5) == grouped_epsilon(1.0, 0.5, 0, 10, 1e-5) == 0.0
    assert grouped_epsilon(2.0, 0.2, 5, 40, 1e-5) > grouped_epsilon(2.0, 0.2, 5, 20, 1e-5)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_nothing_released_and_nothing_hidden(accountant: str) -> None:
    def cost(*releases: Release) -> float:
        return epsilon(releases, 1e-5, accountant)  # type: ignore[arg-type]

    assert cost() == 0.0
    assert cost(GaussianRelease(1.0, count=0)) == 0.0
    assert cost(GaussianRelease(1.0, 5, 0.0)) == 0.0
    assert cost(GaussianRelease(math.inf, 5)) == 0.0
    assert cost(GaussianRelease(0.0)) == math.inf
    assert cost(GaussianRelease(0.0, 1, 0.01)) == math.inf
    assert cost(GaussianRelease(5.0), GaussianRelease(0.0)) == math.inf
    assert cost(PureRelease(math.inf)) == math.inf
    assert math.isfinite(cost(GaussianRelease(0.01, 3, 0.5)))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon([GaussianRelease(1.0)], delta)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianRelease(-1.0),
        lambda: GaussianRelease(math.nan),
        lambda: GaussianRelease(1.0, -1),
        lambda: GaussianRelease(1.0, 1, 1.5),
        lambda: SkellamRelease(2.0, 1.0, 5.0),
        lambda: PureRelease(-0.1),
    ],
)
def test_releases_that_cannot_be(make: object) -> None:
    with pytest.raises(ConfigError, match="release"):
        make()  # type: ignore[operator]


def test_skellam_has_no_pld() -> None:
    skellam = [SkellamRelease(10.0, 100.0, 400.0)]
    with pytest.raises(PrivacyRefused, match="rdp"):
        epsilon(skellam, 1e-5)
    costs = summary(skellam, 1e-5)
    assert costs["pld"] is None and costs["mu"] is None and costs["rho"] is None
    assert costs["rdp"] == costs["without_amplification"] == epsilon(skellam, 1e-5, "rdp")
    assert costs["replace_one"] > costs["rdp"]  # type: ignore[operator]


# --- the closed form


@given(mu=st.floats(0.01, 60.0), eps=st.floats(0.0, 500.0))
def test_gaussian_curve_by_integration(mu: float, eps: float) -> None:
    # delta = E_P[(1 - e^(eps - L))+] with the privacy loss L ~ N(mu²/2, mu²) under P.
    grid = np.linspace(-12.0, 12.0, 48_001)
    loss = mu * mu / 2 + mu * grid
    weights = np.exp(-grid * grid / 2) / math.sqrt(2 * math.pi)
    gain = -np.expm1(np.minimum(eps - loss, 0.0))
    numeric = float(np.trapezoid(weights * gain, grid))

    assert gaussian_delta(mu, eps) == pytest.approx(numeric, rel=1e-4, abs=1e-12)


@given(mu=st.floats(1e-3, 100.0), log_delta=st.floats(-40.0, -1.0))
def test_gaussian_epsilon_inverts_delta(mu: float, log_delta: float) -> None:
    delta = math.exp(log_delta)
    eps = gaussian_epsilon(mu, delta)

    assert gaussian_delta(mu, eps) <= delta
    if eps > 1e-6:
        assert gaussian_delta(mu, eps * (1 - 1e-9)) > delta * (1 - 1e-6)


def test_normal_tail() -> None:
    from scipy.special import log_ndtr

    for x in (-300.0, -40.0, -30.001, -29.999, -5.0, 0.0, 3.0, 30.0):
        assert log_normal_cdf(x) == pytest.approx(float(log_ndtr(x)), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("mu", "delta"), [(0.3, 1e-6), (1.0, 1e-5), (3.0, 1e-8)])
def test_closed_form_and_numerical_composition_agree(mu: float, delta: float) -> None:
    from dp_accounting.pld import privacy_loss_distribution

    z = 3.0 / mu
    numeric = privacy_loss_distribution.from_gaussian_mechanism(z).self_compose(9)
    exact = epsilon([GaussianRelease(z, 4), GaussianRelease(z, 5)], delta)

    assert exact == pytest.approx(numeric.get_epsilon_for_delta(delta), rel=2e-3)
    assert exact <= numeric.get_epsilon_for_delta(delta) + 1e-9
    assert delta_at([GaussianRelease(z, 9)], exact) == pytest.approx(delta)


def test_mixed_schedules_compose() -> None:
    sampled, plain, coin = GaussianRelease(1.5, 50, 0.02), GaussianRelease(8.0, 2), PureRelease(0.2)
    whole = epsilon([sampled, plain, coin], 1e-5)
    parts = [epsilon([each], 1e-5 / 3) for each in (sampled, plain, coin)]

    assert max(parts[:2]) < whole < sum(parts)
    assert whole < epsilon([sampled, plain, coin], 1e-5, "rdp")
    assert delta_at([sampled, plain, coin], whole) == pytest.approx(1e-5, rel=0.02)
    assert delta_at([sampled, plain, coin], whole, "rdp") > 1e-5
    assert zcdp_rho([plain, coin]) == pytest.approx(2 / 128 + 0.02)
    assert gaussian_mu([plain, plain]) == pytest.approx(math.sqrt(4 / 64))


def test_a_schedule_of_many_different_multipliers() -> None:
    varied = [GaussianRelease(1.0 + 0.01 * k, 1, 0.05) for k in range(25)]
    loud, quiet = [GaussianRelease(1.0, 25, 0.05)], [GaussianRelease(1.24, 25, 0.05)]

    assert epsilon(quiet, 1e-5) < epsilon(varied, 1e-5) < epsilon(loud, 1e-5)


# --- monotonicity


multipliers = st.floats(0.5, 20.0)
rates = st.sampled_from([0.01, 0.1, 0.5, 1.0])


@settings(max_examples=10, deadline=None)
@given(z=multipliers, more=st.floats(1.01, 3.0), q=rates, steps=st.integers(1, 200))
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_more_noise_costs_less_more_steps_cost_more(
    accountant: str, z: float, more: float, q: float, steps: int
) -> None:
    def cost(z: float, steps: int, q: float) -> float:
        return epsilon([GaussianRelease(z, steps, q)], 1e-6, accountant)  # type: ignore[arg-type]

    slack = 2e-3 + 1e-3 * cost(z, steps, q)
    assert cost(z * more, steps, q) <= cost(z, steps, q) + slack
    assert cost(z, 2 * steps, q) >= cost(z, steps, q) - slack
    assert cost(z, steps, q) <= cost(z, steps, 1.0) + slack


@settings(max_examples=10, deadline=None)
@given(zs=st.lists(st.tuples(multipliers, rates), min_size=1, max_size=5), data=st.data())
def test_a_part_costs_no_more_than_the_whole(zs: list[tuple[float, float]], data: st.DataObject) -> None:
    whole = [GaussianRelease(z, 3, q) for z, q in zs]
    part = whole[: data.draw(st.integers(0, len(whole)))]

    for accountant in ("pld", "rdp"):
        spent = epsilon(whole, 1e-5, accountant)  # type: ignore[arg-type]
        assert epsilon(part, 1e-5, accountant) <= spent * 1.001 + 2e-3  # type: ignore[arg-type]
        # Order and grouping are no matter.
        shuffled: Sequence[Release] = whole[::-1]
        assert epsilon(shuffled, 1e-5, accountant) == pytest.approx(spent, rel=1e-3)  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None)
@given(z=multipliers, q=rates, steps=st.integers(1, 100))
def test_pld_is_never_above_rdp(z: float, q: float, steps: int) -> None:
    releases = [GaussianRelease(z, steps, q)]
    assert epsilon(releases, 1e-5) <= epsilon(releases, 1e-5, "rdp") * 1.001 + 2e-3


# --- Rényi divergences


def _exact_skellam(shift: int, variance: float, order: float) -> float:
    """Rényi divergence of a Skellam variable against itself shifted; P(k) = e^-v I_|k|(v)."""
    reach = int(12 * math.sqrt(variance) + 6 * order * shift + 40)
    k = np.arange(-reach, reach + 1)
    with np.errstate(divide="ignore"):
        log_p = np.log(ive(np.abs(k), variance))
        log_q = np.log(ive(np.abs(k - shift), variance))
    known = np.isfinite(log_p) & np.isfinite(log_q)
    return float(logsumexp(order * log_p[known] + (1 - order) * log_q[known]) / (order - 1))


@pytest.mark.parametrize("variance", [1.0, 4.0, 20.0, 150.0, 2000.0])
@pytest.mark.parametrize("shift", [1, 2, 5, 12])
@pytest.mark.parametrize("order", [1.1, 1.5, 2.0, 2.5, 3.0, 8.0, 16.0])
def test_skellam_bound_holds(variance: float, shift: int, order: float) -> None:
    exact = _exact_skellam(shift, variance, order)
    bound = float(skellam_rdp(float(shift), float(shift), variance, np.array([order]))[0])

    assert 0 < exact <= bound * (1 + 1e-9)
    if variance == 2000.0 and order == 8.0:
        # The check means something: the bound is close where there is enough noise.
        assert bound < 1.01 * exact


def test_skellam_with_much_noise_is_like_a_gaussian() -> None:
    l2, z = 1000.0, 5.0
    skellam = [SkellamRelease(l2, 30_000.0, (z * l2) ** 2, 10)]
    assert epsilon(skellam, 1e-6, "rdp") == pytest.approx(
        epsilon([GaussianRelease(z, 10)], 1e-6, "rdp"), rel=0.02
    )


@pytest.mark.parametrize("eps", [0.1, 1.0, 5.0])
def test_pure_divergence_is_that_of_a_coin(eps: float) -> None:
    p = 1 / (1 + math.exp(-eps))
    orders = np.array([1.5, 2.0, 10.0])
    coin = np.log(p**orders * (1 - p) ** (1 - orders) + (1 - p) ** orders * p ** (1 - orders)) / (orders - 1)

    np.testing.assert_allclose(pure_rdp(eps, orders), coin, rtol=1e-9)
    assert (pure_rdp(eps, ORDERS) <= eps + 1e-12).all()
    assert epsilon([PureRelease(eps)], 1e-9) == pytest.approx(eps, abs=1e-3)


def test_divergences_add_up() -> None:
    one, two = GaussianRelease(2.0, 3, 0.1), SkellamRelease(5.0, 20.0, 300.0, 2)
    np.testing.assert_allclose(rdp([one, two]), rdp([one]) + rdp([two]))
    np.testing.assert_allclose(rdp([GaussianRelease(2.0, 4)]), 4 * ORDERS / 8)
