"""The sum of all replies: the rule of secure aggregation and of privacy plans, and the default."""

from fedrec.core.stage import Sum
from fedrec.rounds.aggregation import AGGREGATION_RULES

AGGREGATION_RULES.register("sum")(Sum)
