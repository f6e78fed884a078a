"""Every aggregation rule keeps the contract that is shipped for those of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedrec.rounds.aggregation import AGGREGATION_RULES
from fedrec.testing import AggregationRuleContract


class TestSum(AggregationRuleContract):
    rule_kind = "sum"


class TestMedian(AggregationRuleContract):
    rule_kind = "median"


class TestTrimmedMean(AggregationRuleContract):
    rule_kind = "trimmed_mean"
    settings: ClassVar[Mapping[str, Any]] = {"trim": 0.2}


class TestKrum(AggregationRuleContract):
    rule_kind = "krum"


class TestNormFilter(AggregationRuleContract):
    rule_kind = "norm_filter"


def test_none_is_left_out() -> None:
    tested = {each.rule_kind for each in AggregationRuleContract.__subclasses__()}
    assert tested >= set(AGGREGATION_RULES.builtin_names())
