"""Mechanisms: the noise that the plan speaks of is in every release, and nothing leaves without it."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, seeds
from scipy import stats

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.integers import Carried, Integers
from fedrec.privacy.mechanism import Mechanism, mechanism_of
from fedrec.privacy.mechanisms.distributed import dithered
from fedrec.privacy.noise import SNAP_BITS, NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import AdaptiveClip, InteractionPlan
from fedrec.secagg.encoding import Encoding

P, CLIP, Z = 20_000, 2.0, 1.3
P_VALUE = 1e-4
MODES = ("central", "distributed", "local", "interaction")


def planned(mode: str, z: float = Z, parameters: int = P, **changes: Any) -> PrivacyPlan:
    """100 users, half of them wanted, 80 % of those must reply; the third round has twice the noise."""
    fields: dict[str, Any] = {
        "unit": "interaction" if mode == "interaction" else "user",
        "trust": "local" if mode == "interaction" else mode,
        "target_epsilon": 3.0,
        "delta": 1e-4,
        "population": 100,
        "sampling": "poisson",
        "sampling_rate": 0.5,
        "rounds": 3,
        "clip_norm": CLIP,
        "noise_multipliers": (z, z, 2 * z),
        "accountant": "rdp",
        "parameters": parameters,
    }
    if mode == "distributed":
        fields["distributed"] = Integers(scale=100.0, bits=32, survivors=0.8, beta=1e-8)
    if mode == "interaction":
        fields["interaction"] = InteractionPlan()
    return PrivacyPlan(**fields | changes)


def run_round(
    mechanism: Mechanism, sums: list[tuple[np.ndarray, int]], round_: int = 1, size: int = P, seed: int = 1
) -> np.ndarray:
    """All nodes contribute, the coordinator releases."""
    source = NoiseSource(seed)
    total = mechanism.zero(size)
    for node, (vector, users) in enumerate(sums):
        own = source.derive("node", node, round_)
        total = mechanism.add(total, mechanism.contribute(vector, users, round_, CLIP, own))
    everyone = sum(users for _, users in sums)
    return mechanism.release(total, everyone, round_, CLIP, source.derive("coordinator", round_))


def close_to_std(noise: np.ndarray, std: float) -> bool:
    return abs(noise.std() / std - 1) < 5 / np.sqrt(2 * noise.size) and abs(noise.mean()) < 5 * std / np.sqrt(
        noise.size
    )


# -- every mode ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_counts_as_zero_on_nodes_and_is_not_released(mode: str, bad: float) -> None:
    """A node's refusal would tell about data; a coordinator's tells about what came."""
    mechanism, noise = mechanism_of(planned(mode, parameters=3)), NoiseSource(1)
    sent = mechanism.contribute(np.array([0.0, bad, 1.0]), 50, 1, CLIP, NoiseSource(1))
    clean = mechanism.contribute(np.array([0.0, 0.0, 1.0]), 50, 1, CLIP, NoiseSource(1))
    np.testing.assert_array_equal(sent, clean)
    if mode != "distributed":
        with pytest.raises(PrivacyRefused, match="finite numbers"):
            mechanism.release(np.array([0.0, bad, 1.0]), 50, 1, CLIP, noise)


@pytest.mark.parametrize("mode", MODES)
def test_a_sum_of_no_users_is_zero(mode: str) -> None:
    mechanism = mechanism_of(planned(mode, parameters=3))
    assert not mechanism.contribute(np.array([0.0, 0.0, 1e-9]), 0, 1, CLIP, NoiseSource(1)).any()
    assert not mechanism.contribute(np.zeros(3), 0, 1, CLIP, NoiseSource(1)).any()


@pytest.mark.parametrize("mode", MODES)
def test_adding_changes_neither_of_the_two(mode: str) -> None:
    mechanism = mechanism_of(planned(mode, parameters=3))
    one = mechanism.contribute(np.array([1.0, 2.0, 3.0]), 25, 1, CLIP, NoiseSource(1))
    kept, zero = one.copy(), mechanism.zero(3)
    both = mechanism.add(one, one)
    np.testing.assert_array_equal(one, kept)
    np.testing.assert_array_equal(mechanism.add(zero, one), one)
    assert not zero.any() and both.dtype == zero.dtype == one.dtype


@pytest.mark.parametrize("mode", ["central", "distributed", "local"])
@pytest.mark.parametrize("round_", [1, 3])
def test_the_noise_of_the_planned_cohort_is_what_the_plan_says(mode: str, round_: int) -> None:
    """Over one node or ten: rounding adds at most 1/4 per node and value, in integer units."""
    plan = planned(mode)
    vector = np.linspace(-0.1, 0.1, P)
    for nodes in (1, 10):
        released = run_round(mechanism_of(plan), [(vector / nodes, 50 // nodes)] * nodes, round_)
        std = plan.noise_std(round_)
        if mode == "distributed":
            std = math.hypot(std, math.sqrt(nodes / 6) / 100.0)
        assert close_to_std(released - vector, std)
        assert stats.kstest((released - vector) / std, "norm").pvalue > P_VALUE


@pytest.mark.parametrize("mode", ["central", "distributed", "local"])
def test_rounds_do_not_share_noise(mode: str) -> None:
    mechanism, vector = mechanism_of(planned(mode)), np.zeros(P)
    one, two = (run_round(mechanism, [(vector, 50)], round_) for round_ in (1, 2))
    assert stats.pearsonr(one, two).pvalue > P_VALUE
    again = run_round(mechanism, [(vector, 50)], 1)
    np.testing.assert_array_equal(one, again)
    assert (run_round(mechanism, [(vector, 50)], 1, seed=1 + 2**32) != one).any()


# -- central ------------------------------------------------------------------------------------------------------


def test_central_sums_travel_as_they_are_and_the_release_is_on_the_grid() -> None:
    mechanism, vector = mechanism_of(planned("central")), np.linspace(-3, 3, P)
    np.testing.assert_array_equal(mechanism.contribute(vector, 4, 1, CLIP, NoiseSource(1)), vector)
    released = run_round(mechanism, [(vector, 4), (vector, 5)])
    grid = 2.0 ** (math.floor(math.log2(Z * CLIP)) - SNAP_BITS)
    np.testing.assert_array_equal(released / grid, np.rint(released / grid))
    assert close_to_std(released - 2 * vector, Z * CLIP)


def test_an_empty_cohort_is_noised_like_any_other() -> None:
    assert close_to_std(run_round(mechanism_of(planned("central")), []), Z * CLIP)


def test_noise_follows_the_clip_norm_of_the_round() -> None:
    mechanism = mechanism_of(planned("central"))
    released = mechanism.release(np.zeros(P), 50, 1, 10 * CLIP, NoiseSource(1))
    assert close_to_std(released, 10 * Z * CLIP)


@pytest.mark.parametrize("bits", [16, 32])
def test_leaving_a_user_out_of_a_carried_sum_moves_it_by_no_more_than_the_noise_covers(
    bits: Literal[16, 32],
) -> None:
    """The whole way: encoded with one dither per value, decoded, with and without the user, at a coarse scale."""
    seed = 9 if bits == 16 else None
    encoding = Encoding(1000, bits, 3.0, rotation=seed)
    plan = planned("central", parameters=1000, carried=Carried(scale=encoding.scale))
    covered = plan.noise_std(1) / Z
    assert covered == pytest.approx(CLIP + math.sqrt(1024) / 3.0, rel=0.15)
    rng, furthest = np.random.default_rng(2), 0.0
    for trial in range(100):
        one, others = rng.normal(size=1000), rng.normal(scale=5.0, size=1000)
        one *= CLIP / np.linalg.norm(one)
        sums = [
            encoding.decode(encoding.encode(vector, np.zeros(0), NoiseSource(trial).uniform))[0]
            for vector in (others + one, others)
        ]
        furthest = max(furthest, float(np.linalg.norm(sums[0] - sums[1])))
    assert CLIP < furthest <= covered
    assert close_to_std(mechanism_of(plan).release(np.zeros(1000), 9, 1, CLIP, NoiseSource(1)), Z * covered)


def test_with_adaptive_clipping_the_count_has_its_own_noise_and_the_update_pays_for_it() -> None:
    plan = planned("central", adaptive=AdaptiveClip(count_noise_multiplier=5.0))
    mechanism, vector = mechanism_of(plan), np.array([0.0, 0.0, 7.0])
    released = np.array(
        [mechanism.release(vector, 50, 1, CLIP, NoiseSource(3).derive(i)) for i in range(2000)]
    )
    update_std = (Z**-2 - (2 * 5.0) ** -2) ** -0.5 * CLIP
    assert update_std > Z * CLIP
    assert close_to_std(released[:, :2], update_std)
    assert close_to_std(released[:, 2] - 7.0, 5.0)
    with pytest.raises(PrivacyRefused, match="count of unclipped updates"):
        mechanism.release(np.zeros(0), 50, 1, CLIP, NoiseSource(1))


# -- local and interaction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", [1, 9])
def test_local_contributions_leave_the_node_with_full_noise_per_user(users: int) -> None:
    mechanism = mechanism_of(planned("local"))
    sent = mechanism.contribute(np.ones(P), users, 3, CLIP, NoiseSource(2))
    assert close_to_std(sent - 1.0, math.sqrt(users) * 2 * Z * CLIP)
    np.testing.assert_array_equal(mechanism.release(sent, users, 3, CLIP, NoiseSource(3)), sent)


def test_interaction_level_sums_pass_as_they_are() -> None:
    vector = np.linspace(-1, 1, P)
    released = run_round(mechanism_of(planned("interaction")), [(vector, 1)])
    np.testing.assert_array_equal(released, vector)


# -- distributed --------------------------------------------------------------------------------------------------


@given(seed=seeds, nodes=st.integers(1, 8), size=st.integers(1, 30))
@quick
def test_without_noise_the_integers_decode_to_the_sum(seed: int, nodes: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    sums = [(rng.normal(scale=5.0, size=size), 10) for _ in range(nodes)]
    mechanism = mechanism_of(planned("distributed", z=0.0, parameters=size))
    total = mechanism.zero(size)
    for vector, users in sums:
        total = mechanism.add(total, mechanism.contribute(vector, users, 1, CLIP, NoiseSource(seed)))
    released = mechanism.release(total, 50, 1, CLIP, NoiseSource(seed))
    np.testing.assert_allclose(released, sum(v for v, _ in sums), atol=nodes / 100.0)


@given(seed=seeds, bits=st.integers(10, 48))
@quick
def test_what_is_sent_are_residues_and_their_order_does_not_matter(seed: int, bits: int) -> None:
    plan = planned(
        "distributed",
        parameters=16,
        distributed=Integers(scale=100.0, bits=bits, survivors=0.8, beta=1e-8),
    )
    mechanism, rng = mechanism_of(plan), np.random.default_rng(seed)
    sent = [
        mechanism.contribute(rng.normal(size=16), 8, 1, CLIP, NoiseSource(seed).derive(i)) for i in range(6)
    ]
    for each in sent:
        assert each.dtype == np.int64 and each.min() >= 0 and each.max() < 2**bits
    totals = []
    for order in (range(6), rng.permutation(6)):
        total = mechanism.zero(16)
        for i in order:
            total = mechanism.add(total, sent[i])
        totals.append(total)
    halves = [mechanism.add(mechanism.add(sent[a], sent[a + 1]), sent[a + 2]) for a in (0, 3)]
    np.testing.assert_array_equal(totals[0], totals[1])
    np.testing.assert_array_equal(totals[0], mechanism.add(*halves))


def test_sums_wrap_at_half_of_the_modulus() -> None:
    plan = planned(
        "distributed", z=0.0, parameters=4, distributed=Integers(scale=1.0, bits=8, survivors=0.8, beta=1e-8)
    )
    mechanism = mechanism_of(plan)
    sent = mechanism.contribute(np.array([127.0, -128.0, 128.0, -129.0]), 50, 1, CLIP, NoiseSource(1))
    np.testing.assert_array_equal(sent, [127, 128, 128, 127])
    np.testing.assert_array_equal(
        mechanism.release(sent, 50, 1, CLIP, NoiseSource(1)), [127, -128, -128, 127]
    )


@given(value=st.floats(-1e6, 1e6), seed=seeds)
@quick
def test_rounding_goes_to_a_neighbour_and_is_right_on_average(value: float, seed: int) -> None:
    out = dithered(np.full(4000, value), NoiseSource(seed))
    below = math.floor(value)
    assert set(np.unique(out)) <= {below, below + 1}
    # Hoeffding: wrong with probability 2 exp(-2 * 4000 * 0.06^2) < 1e-12.
    assert abs(out.mean() - value) < 0.06


def test_whole_numbers_are_not_rounded_and_too_large_ones_are_the_largest() -> None:
    whole = np.array([-3.0, 0.0, 5.0, 2.0**51])
    np.testing.assert_array_equal(dithered(whole, NoiseSource(1)), whole.astype(np.int64))
    assert dithered(np.array([1e300, -1e300]), NoiseSource(1)).tolist() == [2**52, -(2**52)]


@pytest.mark.parametrize("parameters", [1, 40, 2000])
def test_one_user_moves_the_integers_by_no_more_than_the_plan_charges(parameters: int) -> None:
    """With and without the user under the same dither, however many others there are; 400 users of full norm.

    beta is 0.05 here, so that a bound that is too small would be exceeded by far more than the allowed part.
    """
    plan = planned(
        "distributed",
        parameters=parameters,
        distributed=Integers(scale=10.0, bits=32, survivors=0.8, beta=0.05),
    )
    l2, l1 = plan.integer_sensitivity
    always = CLIP * 10.0 + math.sqrt(parameters)
    rng, beyond = np.random.default_rng(5), 0
    for trial in range(400):
        one = rng.normal(size=parameters)
        one *= 10.0 * CLIP / np.linalg.norm(one)
        others = rng.normal(scale=300.0, size=parameters)
        moved = dithered(others + one, NoiseSource(trial)) - dithered(others, NoiseSource(trial))
        assert np.linalg.norm(moved) <= always
        beyond += bool(np.linalg.norm(moved) > l2 or np.abs(moved).sum() > l1)
    assert beyond <= 0.05 * 400


def test_the_difference_is_a_fair_rounding_of_the_users_own_update() -> None:
    """For one fixed sum of others and random dither: mean x, variance of a coin."""
    others, own = np.full(50_000, 12.7), np.full(50_000, 0.3)
    # The same stream twice.
    moved = dithered(others + own, NoiseSource(1)) - dithered(others, NoiseSource(1))
    assert set(np.unique(moved)) == {0, 1}
    assert stats.binomtest(int(moved.sum()), 50_000, 0.3).pvalue > P_VALUE


def test_exactly_the_floor_gives_the_charged_noise_and_one_user_less_gives_nothing() -> None:
    plan = planned("distributed")
    mechanism, vector = mechanism_of(plan), np.zeros(P)
    charged = Z * plan.integer_sensitivity[0] / 100.0
    noise = run_round(mechanism, [(vector, 1)] * 40)
    assert close_to_std(noise, charged)
    (release,) = plan.releases(1)
    assert math.sqrt(release.variance) / 100.0 == pytest.approx(charged)
    more = run_round(mechanism, [(vector, 30), (vector, 60)])
    assert close_to_std(more, charged * math.sqrt(90 / 40))
    with pytest.raises(PrivacyRefused, match="39 users answered, expected at least 40"):
        run_round(mechanism, [(vector, 39)])
    with pytest.raises(PrivacyRefused, match="0 users answered"):
        run_round(mechanism, [])


def rotated(parameters: int = P, *, bits: int = 16, scale: float = 100.0, z: float = Z) -> PrivacyPlan:
    """Integers after a rotation: 20,000 values are 20,480."""
    integers = Integers(scale=scale, bits=bits, survivors=0.8, beta=1e-8, rotation_seed=3)
    return planned("distributed", z=z, parameters=parameters, distributed=integers)


@pytest.mark.parametrize("round_", [1, 3])
def test_rotated_back_the_noise_is_what_the_plan_says(round_: int) -> None:
    plan, vector = rotated(bits=32), np.linspace(-0.1, 0.1, P)
    released = run_round(mechanism_of(plan), [(vector / 10, 5)] * 10, round_)
    assert released.shape == (20_480,)
    std = math.hypot(plan.noise_std(round_), math.sqrt(10 / 6) / 100.0)
    noise = released[:P] - vector
    assert close_to_std(noise, std)
    assert stats.kstest(noise / std, "norm").pvalue > P_VALUE
    # What is left behind the values is noise, too.
    assert close_to_std(released[P:], std)
    assert abs(stats.pearsonr(noise[:-1], noise[1:]).statistic) < 5 / math.sqrt(P)


def test_16_rotated_bits_give_the_same_sum_as_32() -> None:
    """50 users who agree on a single value: unrotated their sum is beyond 16 bits."""
    vector = np.zeros(P)
    vector[7] = CLIP
    sums = [(5 * vector, 5)] * 10
    narrow, wide, plain = (
        run_round(mechanism_of(plan), sums)[:P] - 50 * vector
        for plan in (
            rotated(scale=400.0),
            rotated(scale=400.0, bits=32),
            planned("distributed", distributed=Integers(scale=400.0, bits=16, survivors=0.8, beta=1e-8)),
        )
    )
    np.testing.assert_array_equal(narrow, wide)
    std = rotated(scale=400.0).noise_std(1)
    assert close_to_std(narrow, math.hypot(std, math.sqrt(10 / 6) / 400.0))
    assert abs(plain[7] + 2**16 / 400.0) < 10


def test_rotated_sums_wrap_at_half_of_the_modulus_too() -> None:
    """In one coordinate, where a vector that is the rotation's own row puts all of its norm."""
    plan = rotated(64, bits=8, scale=1.0, z=0.0)
    mechanism = mechanism_of(plan)
    assert plan.distributed is not None
    turn = plan.distributed.rotation(64, 1)
    assert turn is not None and turn.padded == 64
    for reached, decoded in ((127.0, 127.0), (128.0, -128.0), (-128.0, -128.0), (-129.0, 127.0)):
        row, wanted = np.zeros(64), np.zeros(64)
        row[5], wanted[5] = reached, decoded
        # Rotating back and forth leaves 1e-14 that dithering may round up by one step.
        sent = mechanism.contribute(turn.undo(row) * (1 + 1e-12), 50, 1, CLIP, NoiseSource(1))
        released = turn.apply(mechanism.release(sent, 50, 1, CLIP, NoiseSource(1)))
        assert abs(released[5] - decoded) <= 1 + 1e-9
        assert np.abs(np.delete(released, 5)).max() <= 1 + 1e-9


def test_each_round_is_rotated_by_itself_and_alike_on_all_nodes() -> None:
    plan, vector = rotated(100, z=0.0, bits=32, scale=1e6), np.arange(100.0) / 100
    one, other = (mechanism_of(plan).contribute(vector, 5, r, CLIP, NoiseSource(1)) for r in (1, 2))
    assert (one != other).mean() > 0.9
    summed = run_round(mechanism_of(plan), [(vector, 5)] * 10, 2, size=100)[:100]
    np.testing.assert_allclose(summed, 10 * vector, atol=1e-4)


def test_one_user_moves_rotated_integers_by_no_more_than_the_plan_charges() -> None:
    plan = planned(
        "distributed",
        parameters=1000,
        distributed=Integers(scale=10.0, survivors=0.8, beta=0.05, rotation_seed=1),
        z=0.0,
    )
    mechanism, (l2, l1) = mechanism_of(plan), plan.integer_sensitivity
    rng, beyond = np.random.default_rng(5), 0
    for trial in range(200):
        one = rng.normal(size=1000)
        one *= CLIP / np.linalg.norm(one)
        others = rng.normal(scale=30.0, size=1000)
        with_, without = (
            mechanism.contribute(vector, 5, 1, CLIP, NoiseSource(trial)) for vector in (others + one, others)
        )
        moved = with_ - without
        moved = (moved + 2**31) % 2**32 - 2**31
        beyond += bool(np.linalg.norm(moved) > l2 or np.abs(moved).sum() > l1)
    assert beyond <= 0.05 * 200


def test_a_contribution_alone_already_hides_under_its_share() -> None:
    mechanism = mechanism_of(planned("distributed"))
    sent = mechanism.contribute(np.zeros(P), 1, 1, CLIP, NoiseSource(4))
    centred = np.where(sent >= 2**31, sent - 2**32, sent)
    assert close_to_std(centred, math.sqrt(planned("distributed").share_variance(1)))


def test_more_than_was_charged_for_is_not_sent() -> None:
    mechanism = mechanism_of(planned("distributed", parameters=3))
    with pytest.raises(PrivacyRefused, match=r"expected the plan's 2\.0 or less"):
        mechanism.contribute(np.zeros(3), 5, 1, 2 * CLIP, NoiseSource(1))
    with pytest.raises(PrivacyRefused, match="sum of 4 values: expected at most the plan's 3"):
        mechanism.contribute(np.zeros(4), 5, 1, CLIP, NoiseSource(1))
