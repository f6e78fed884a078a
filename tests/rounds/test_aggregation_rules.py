"""Aggregation rules: against written-out definitions, by properties, and under dishonest replies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import AggregationAborted, ConfigError
from fedrec.core.stage import AggregationRule, Bound, Sum
from fedrec.core.updates import UpdateSum
from fedrec.rounds.aggregation import AGGREGATION_RULES, RuleSettings, rule_problems
from fedrec.rounds.rules._replies import NodeMeans
from fedrec.rounds.rules.krum import Krum, krum_scores
from fedrec.rounds.rules.norm_filter import NormFilter
from fedrec.rounds.rules.trimmed_mean import Median, TrimmedMean

ROBUST: tuple[AggregationRule, ...] = (
    TrimmedMean(0.2),
    Median(),
    Krum(0.2),
    Krum(0.2, keep=4),
    NormFilter(2.0, 0.2),
)
SHAPES = {"table": (5, 3), "bias": (4,)}
#: Replies in the property tests; with a share of 0.2, f is 2.
M, F = 10, 2


def reply(rng: np.random.Generator, users: int, spread: float = 0.1) -> UpdateSum:
    """An honest node: a mean near 1 for each of its users."""
    blocks = {name: users * (1.0 + spread * rng.normal(size=shape)) for name, shape in SHAPES.items()}
    return UpdateSum(blocks, users, 0.5 * users, 3.0 * users, users // 2, 2.0 * users)


def honest(seed: int, count: int = M, most_users: int = 1) -> list[UpdateSum]:
    rng = np.random.default_rng(seed)
    return [reply(rng, int(rng.integers(1, most_users + 1))) for _ in range(count)]


def combined(rule: AggregationRule, replies: Sequence[UpdateSum]) -> UpdateSum:
    return rule.combine(UpdateSum({name: np.zeros(shape) for name, shape in SHAPES.items()}), replies)


def mean(total: UpdateSum) -> np.ndarray:
    return np.concatenate([total.blocks[name].reshape(-1) for name in SHAPES]) / total.users


def means(replies: Sequence[UpdateSum]) -> np.ndarray:
    return np.array([mean(each) for each in replies])


@pytest.mark.parametrize("rule", ROBUST, ids=repr)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_replies_does_not_matter(rule: AggregationRule, seed: int) -> None:
    replies = honest(seed, most_users=50)
    order = np.random.default_rng(seed).permutation(M)
    given_, permuted = combined(rule, replies), combined(rule, [replies[k] for k in order])
    assert given_.users == permuted.users
    np.testing.assert_allclose(mean(given_), mean(permuted), rtol=1e-12)


@pytest.mark.parametrize("rule", ROBUST, ids=repr)
@given(seed=st.integers(0, 2**32 - 1), users=st.integers(1, 1000))
def test_equal_replies_give_the_plain_sum(rule: AggregationRule, seed: int, users: int) -> None:
    replies = [reply(np.random.default_rng(seed), users)] * M
    plain, found = combined(Sum(), replies), combined(rule, replies)
    for name in SHAPES:
        np.testing.assert_allclose(found.blocks[name], plain.blocks[name], rtol=1e-12)
    assert dict(found.numbers()) == pytest.approx(dict(plain.numbers()))


@pytest.mark.parametrize("rule", ROBUST, ids=repr)
@given(seed=st.integers(0, 2**32 - 1))
def test_equal_means_of_unequal_nodes_stay_that_mean(rule: AggregationRule, seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    sizes = rng.integers(1, 100, size=M)
    replies = [UpdateSum({name: n * part for name, part in point.items()}, int(n)) for n in sizes]
    expected = np.concatenate([point[name].reshape(-1) for name in SHAPES])
    np.testing.assert_allclose(mean(combined(rule, replies)), expected, rtol=1e-9)


@pytest.mark.parametrize("rule", (TrimmedMean(0.2), Median()), ids=repr)
@given(
    seed=st.integers(0, 2**32 - 1),
    wrong_values=st.lists(st.floats(-1e30, 1e30), min_size=F, max_size=F),
    users=st.integers(1, 10**6),
)
def test_two_of_ten_cannot_leave_the_honest_range(
    rule: AggregationRule, seed: int, wrong_values: list[float], users: int
) -> None:
    replies = honest(seed, M - F, most_users=50)
    low, high = means(replies).min(axis=0), means(replies).max(axis=0)
    wrong = [
        UpdateSum({n: np.full(shape, value * users) for n, shape in SHAPES.items()}, users)
        for value in wrong_values
    ]
    found = combined(rule, [wrong[0], *replies, wrong[1]])
    assert (mean(found) >= low - 1e-9).all() and (mean(found) <= high + 1e-9).all()
    assert found.users <= M * max(each.users for each in replies)


@pytest.mark.parametrize("rule", (Krum(0.2), Krum(0.2, keep=4)), ids=repr)
@given(seed=st.integers(0, 2**32 - 1), boost=st.floats(-1e12, 1e12), users=st.integers(1, 10**6))
def test_krum_stays_near_the_honest_replies(
    rule: AggregationRule, seed: int, boost: float, users: int
) -> None:
    replies = honest(seed, M - F, most_users=50)
    wrong = UpdateSum({n: np.full(shape, boost * users) for n, shape in SHAPES.items()}, users)
    found = combined(rule, [*replies, wrong, wrong])
    points = means(replies)
    radius = max(float(np.linalg.norm(a - b)) for a in points for b in points)
    # A kept dishonest reply has m - f - 2 neighbours, of which m - 2f - 1 are honest, within the best honest score.
    assert np.linalg.norm(mean(found) - points.mean(axis=0)) <= 4 * radius


@given(seed=st.integers(0, 2**32 - 1), boost=st.floats(-1e12, 1e12), users=st.integers(1, 10**6))
def test_the_norm_filter_bounds_the_length(seed: int, boost: float, users: int) -> None:
    replies = honest(seed, M - F, most_users=50)
    wrong = UpdateSum({n: np.full(shape, boost * users) for n, shape in SHAPES.items()}, users)
    found = combined(NormFilter(2.0, 0.2), [*replies, wrong, wrong])
    longest = float(np.linalg.norm(means(replies), axis=1).max())
    assert np.linalg.norm(mean(found)) <= 2.0 * longest * (1 + 1e-9)
    assert found.users <= M * max(each.users for each in replies)


def test_trimmed_mean_and_median_against_their_definition() -> None:
    replies = honest(3, 7)
    values = np.sort(means(replies), axis=0)
    np.testing.assert_allclose(mean(combined(TrimmedMean(0.2), replies)), values[2:-2].mean(axis=0))
    np.testing.assert_allclose(mean(combined(TrimmedMean(0.0), replies)), values.mean(axis=0))
    np.testing.assert_allclose(mean(combined(Median(), replies)), values[3])
    np.testing.assert_allclose(mean(combined(Median(), honest(3, 6))), np.median(means(honest(3, 6)), axis=0))


def test_trimmed_mean_weighs_what_is_left_by_users() -> None:
    sizes, values = [1, 2, 3, 4, 4], [0.0, 1.0, 2.0, 4.0, 100.0]
    replies = [
        UpdateSum({n: np.full(shape, k * v) for n, shape in SHAPES.items()}, k)
        for k, v in zip(sizes, values, strict=True)
    ]
    np.testing.assert_allclose(mean(combined(TrimmedMean(0.2), replies)), (2 * 1 + 3 * 2 + 4 * 4) / 9)


def test_krum_against_its_definition() -> None:
    replies = honest(5, 8)
    points = means(replies)
    expected = [
        sum(sorted(float(np.square(p - q).sum()) for k, q in enumerate(points) if k != j)[: 8 - 2 - 2])
        for j, p in enumerate(points)
    ]
    found = krum_scores(NodeMeans.of(replies, 2), 2)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(mean(combined(Krum(0.25), replies)), points[int(np.argmin(expected))])
    best = np.argsort(expected)[:3]
    np.testing.assert_allclose(mean(combined(Krum(0.25, keep=3), replies)), points[best].mean(axis=0))


def test_a_node_cannot_buy_weight_with_stated_users() -> None:
    replies = honest(7)
    replies[0].users, replies[0].blocks = (
        10**6,
        {n: np.full(s, 1.5 * 10**6) for n, s in SHAPES.items()},
    )
    assert mean(combined(Sum(), replies))[0] > 1.49
    for rule in ROBUST:
        found = combined(rule, replies)
        assert found.users <= M and np.abs(mean(found) - 1.0).max() < 0.3, rule


@pytest.mark.parametrize("rule", ROBUST, ids=repr)
def test_replies_of_no_users_change_nothing(rule: AggregationRule) -> None:
    replies = honest(9)
    empty = UpdateSum({n: np.full(s, 1e9) for n, s in SHAPES.items()}, 0)
    np.testing.assert_array_equal(
        mean(combined(rule, replies)), mean(combined(rule, [empty, *replies, empty]))
    )
    nothing = combined(rule, [empty])
    assert nothing.users == 0 and not nothing.blocks["bias"].any()


def test_krum_gives_no_sum_of_too_few() -> None:
    with pytest.raises(AggregationAborted, match="got 4 replies with users: expected at least 5"):
        combined(Krum(0.1), honest(1, 4))
    with pytest.raises(AggregationAborted, match="got 2 replies with users: expected at least 3"):
        combined(TrimmedMean(0.4), honest(1, 2))


def test_rules_are_found_by_name_and_setting() -> None:
    assert AGGREGATION_RULES.names() == ["krum", "median", "norm_filter", "sum", "trimmed_mean"]
    assert RuleSettings().rule() == Sum()
    assert RuleSettings.model_validate({"kind": "trimmed_mean", "trim": 0.2}).rule() == TrimmedMean(0.2)
    settings = RuleSettings.model_validate({"kind": "krum", "keep": 3})
    assert RuleSettings.model_validate_json(settings.model_dump_json()).rule() == Krum(keep=3)
    for wrong, message in (
        ({"kind": "medium"}, "did you mean 'median'"),
        ({"kind": "trimmed_mean", "trimm": 0.1}, "did you mean 'trim'"),
        ({"kind": "trimmed_mean", "trim": 0.5}, "trim = 0.5: Input should be less than 0.5"),
        ({"kind": "sum", "trim": 0.5}, "not a setting of 'sum': expected none"),
    ):
        with pytest.raises(ValueError, match=message):
            RuleSettings.model_validate(wrong)


def test_what_a_rule_cannot_stand_beside() -> None:
    for kind in ("krum", "median", "norm_filter", "trimmed_mean"):
        rule = RuleSettings(kind=kind)
        (line,) = rule_problems(rule, hidden=True, private=False)
        assert "secure aggregation" in line and "sealed" in line
        (line,) = rule_problems(rule, hidden=False, private=True)
        assert "does not bound what one user changes" in line
        assert not rule_problems(rule, hidden=False, private=False, nodes=10)
    assert not rule_problems(RuleSettings(), hidden=True, private=True, nodes=1)
    (line,) = rule_problems(RuleSettings(kind="krum"), hidden=False, private=False, nodes=4)
    assert "expected at least 5" in line
    assert Sum().sensitivity(Bound(0.7)).l2 == 0.7


def test_a_rule_from_outside_by_import_path(tmp_path: Path) -> None:
    (tmp_path / "outside_rules.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from fedrec.core.stage import Bound\n"
        "@dataclass(frozen=True)\n"
        "class Last:\n"
        "    sees_replies: ClassVar[bool] = True\n"
        "    factor: float = 1.0\n"
        "    def combine(self, zero, replies):\n"
        "        return replies[-1]\n"
        "    def sensitivity(self, bound):\n"
        "        return Bound()\n"
    )
    code = (
        "from fedrec.core.registry import OWN_CONFIGURATION\n"
        "from fedrec.rounds.aggregation import RuleSettings, rule_problems\n"
        "s = RuleSettings.model_validate({'kind': 'outside_rules:Last', 'factor': 2.5}, context=OWN_CONFIGURATION)\n"
        "assert s.rule().factor == 2.5\n"
        "assert len(rule_problems(s, hidden=True, private=True)) == 2\n"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n{code}"], check=True
    )


def test_a_path_is_followed_in_the_callers_own_configuration_alone() -> None:
    with pytest.raises(ConfigError, match="cannot be imported"):
        AGGREGATION_RULES.get("no_such_package:Rule", paths=True)
    with pytest.raises(ValueError, match="followed in your own configuration alone"):
        RuleSettings.model_validate({"kind": "no_such_package:Rule"})
