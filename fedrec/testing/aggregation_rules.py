"""The contract of an aggregation rule; subclass `AggregationRuleContract` and give `rule_kind`.

Letters: M replies, n values of an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec.core.registry import OWN_CONFIGURATION
from fedrec.core.stage import AggregationRule, Bound
from fedrec.core.updates import UpdateSum
from fedrec.rounds.aggregation import RuleSettings, rule_problems

SHAPES = {"table": (5, 3), "bias": (4,)}
REPLIES = 10


def reply(rng: np.random.Generator, users: int, spread: float = 0.1) -> UpdateSum:
    """What a node with so many users says: a mean near 1 for each value of each user's update."""
    blocks = {name: users * (1.0 + spread * rng.normal(size=shape)) for name, shape in SHAPES.items()}
    return UpdateSum(blocks, users)


def replies_of(seed: int, most_users: int = 4) -> list[UpdateSum]:
    """[M] replies of honest nodes."""
    rng = np.random.default_rng(seed)
    return [reply(rng, int(rng.integers(1, most_users + 1))) for _ in range(REPLIES)]


def mean_of(total: UpdateSum) -> NDArray[np.float64]:
    """[n] a sum over its users."""
    return np.concatenate([total.blocks[name].reshape(-1) for name in SHAPES]) / total.users


class AggregationRuleContract:
    """What the coordinator, privacy plans and secure aggregation rely on."""

    #: Name or import path.
    rule_kind: ClassVar[str]
    #: Its settings.
    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def configured(self) -> RuleSettings:
        """The rule as a configuration of one's own names it."""
        values = {"kind": self.rule_kind, **self.settings}
        return RuleSettings.model_validate(values, context=OWN_CONFIGURATION)

    @pytest.fixture
    def rule(self, configured: RuleSettings) -> AggregationRule:
        """The rule itself."""
        return configured.rule()

    def test_equal_replies_give_their_sum(self, rule: AggregationRule) -> None:
        """Where all nodes agree, a rule changes nothing."""
        one = reply(np.random.default_rng(1), 3, spread=0.0)
        total = self.combined(rule, [reply(np.random.default_rng(1), 3, spread=0.0) for _ in range(REPLIES)])
        np.testing.assert_allclose(mean_of(total), mean_of(one), rtol=1e-9)
        assert 0 < total.users <= 3 * REPLIES

    @pytest.mark.parametrize("seed", range(5))
    def test_the_order_of_replies_does_not_count(self, rule: AggregationRule, seed: int) -> None:
        """Replies come in any order."""
        order = np.random.default_rng(seed).permutation(REPLIES)
        straight = self.combined(rule, replies_of(seed))
        shuffled = self.combined(rule, [replies_of(seed)[k] for k in order])
        np.testing.assert_allclose(mean_of(shuffled), mean_of(straight), rtol=1e-9, atol=1e-12)
        assert shuffled.users == straight.users

    @pytest.mark.parametrize("seed", range(5))
    def test_honest_replies_give_about_their_mean(self, rule: AggregationRule, seed: int) -> None:
        """Nothing is lost where nothing is wrong."""
        total = self.combined(rule, replies_of(seed))
        assert np.abs(mean_of(total) - 1.0).max() < 0.5

    @pytest.mark.parametrize("boost", [1e3, 1e9, -1e9])
    def test_one_boosted_reply_moves_it_little_where_it_looks_at_replies(
        self, rule: AggregationRule, boost: float
    ) -> None:
        """That is what looking at single replies is for; a plain sum is moved by any amount."""
        replies = replies_of(7)
        for name in SHAPES:
            replies[3].blocks[name] = replies[3].blocks[name] * boost
        moved = np.abs(mean_of(self.combined(rule, replies)) - 1.0).max()
        assert moved < 2.0 if rule.sees_replies else moved > 10.0

    @pytest.mark.parametrize("seed", range(20))
    def test_a_user_moves_it_by_no_more_than_it_states(self, rule: AggregationRule, seed: int) -> None:
        """Noise is sized by `sensitivity`; infinity claims nothing, and is refused under a privacy target."""
        stated = rule.sensitivity(Bound(1.0)).l2
        if np.isinf(stated):
            assert not stated <= 1.0
            return
        rng = np.random.default_rng(seed)
        with_user, without = replies_of(seed), replies_of(seed)
        own = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
        norm = np.sqrt(sum(float(np.square(values).sum()) for values in own.values()))
        for name, values in own.items():
            with_user[2].blocks[name] = with_user[2].blocks[name] + values / norm
        ends = [self.combined(rule, replies) for replies in (with_user, without)]
        apart = [ends[0].blocks[name] - ends[1].blocks[name] for name in SHAPES]
        assert np.sqrt(sum(float(np.square(values).sum()) for values in apart)) <= stated * (1 + 1e-9)

    def test_it_is_refused_where_no_single_reply_is_seen(
        self, configured: RuleSettings, rule: AggregationRule
    ) -> None:
        """Secure aggregation shows the sum alone."""
        problems = rule_problems(configured, hidden=True, private=False)
        assert bool(problems) == rule.sees_replies and all("\n" not in line for line in problems)

    def test_its_settings_survive_a_file(self, configured: RuleSettings) -> None:
        """Tasks hold them as JSON."""
        plain = configured.model_dump(mode="json")
        again = RuleSettings.model_validate(plain, context=OWN_CONFIGURATION)
        assert again == configured and again.rule() == configured.rule()

    @staticmethod
    def combined(rule: AggregationRule, replies: Sequence[UpdateSum]) -> UpdateSum:
        """What the rule makes of the replies."""
        return rule.combine(UpdateSum({name: np.zeros(shape) for name, shape in SHAPES.items()}), replies)
