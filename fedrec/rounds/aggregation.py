"""Which aggregation rule a run has: its name and settings, and the rule that they mean.

    aggregation_rule = "median"                               # a name, with the rule's defaults
    aggregation_rule = { kind = "trimmed_mean", trim = 0.2 }  # a name and its settings
    aggregation_rule = { kind = "my_package:MyRule" }         # an import path, or an entry point's name

A rule is a class that registers itself; its constructor's parameters are its settings. The built-in ones are in
`fedrec.rounds.rules`. Only the coordinator has a rule. Out of scope: what rules compute.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from fedrec.core.errors import AggregationAborted, ConfigError
from fedrec.core.registry import Registry, paths_allowed
from fedrec.core.stage import AggregationRule, Bound
from fedrec.core.updates import UpdateSum

KEY = "federation.aggregation_rule"
AGGREGATION_RULES: Registry[type[AggregationRule]] = Registry(
    "aggregation_rules", KEY, packages=("fedrec.rounds.rules",)
)


class RuleSettings(BaseModel):
    """A rule as it is configured.

    Attributes:
        kind: its name, or an import path "package.module:Name"; every other key is a setting of the rule.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = "sum"

    @model_validator(mode="after")
    def _is_known(self, info: ValidationInfo) -> Self:
        try:
            AGGREGATION_RULES.get(self.kind, paths=paths_allowed(info.context))
            self.rule()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def rule(self) -> AggregationRule:
        """The rule; an import path was followed when the settings were read, if they are the caller's own.

        Raises:
            ConfigError: an unknown name, an unknown setting, or a value that the rule does not take.
        """
        made = AGGREGATION_RULES.get(self.kind)
        given = self.model_extra or {}
        known = [name for name in inspect.signature(made).parameters if name != "kind"]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigError(
                    f"{KEY}.{name} is not a setting of {self.kind!r}: {hint}expected {', '.join(known) or 'none'}"
                )
        try:
            return TypeAdapter(made).validate_python(dict(given))
        except ValidationError as error:
            raise ConfigError("; ".join(map(_problem, error.errors()))) from error


def rule_settings(given: object) -> object:
    """A bare name as the settings that it means."""
    return {"kind": given} if isinstance(given, str) else given


#: The type of a field of settings that holds a rule.
ConfiguredRule = Annotated[RuleSettings, BeforeValidator(rule_settings)]


def rule_problems(rule: RuleSettings, *, hidden: bool, private: bool, nodes: int | None = None) -> list[str]:
    """What of a run a rule does not fit, one line each.

    Args:
        rule: as configured.
        hidden: sums come by secure aggregation, which shows no single reply.
        private: the run has a privacy plan, whose noise is sized for what one user changes of the sum.
        nodes: how many are there at most; None: not known.
    """
    made, lines = rule.rule(), []
    if hidden and made.sees_replies:
        lines.append(
            f"{KEY} is {rule.kind!r}, which looks at single replies, and secure aggregation shows their sum alone: "
            'use "sum", or set privacy.aggregator to "sealed"'
        )
    if private and not made.sensitivity(Bound(1.0)).l2 <= 1.0:
        lines.append(
            f'{KEY} is {rule.kind!r}, which does not bound what one user changes: use "sum" under a privacy target'
        )
    if nodes is not None:
        lines += _too_few(made, nodes)
    return lines


def _too_few(rule: AggregationRule, nodes: int) -> list[str]:
    """Why the rule gives no sum of so many replies; tried with replies that are all the same."""
    try:
        rule.combine(UpdateSum({"probe": np.zeros(1)}), [UpdateSum({"probe": np.ones(1)}, 1)] * nodes)
    except AggregationAborted as error:
        return [f"federation.nodes is {nodes}: {error}"]
    return []


def _problem(item: Mapping[str, Any]) -> str:
    place = ".".join((KEY, *(str(part) for part in item["loc"])))
    return f"{place} = {item.get('input')!r:.40}: {str(item['msg']).removeprefix('Value error, ')}"
