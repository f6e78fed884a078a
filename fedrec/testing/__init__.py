"""Contract tests for what is added from outside: subclass one, say what is tested, and run pytest.

    from fedrec.testing import RecommenderContract

    class TestTransitions(RecommenderContract):
        model = {"kind": "my_package:Transitions"}

fedrec's own recommenders, loaders, metrics, encoders, mechanisms and aggregation rules pass the same tests. Needs
pytest.
"""

from __future__ import annotations

from fedrec.testing.aggregation_rules import AggregationRuleContract
from fedrec.testing.encoders import EncoderContract
from fedrec.testing.loaders import LoaderContract
from fedrec.testing.mechanisms import MechanismContract
from fedrec.testing.metrics import MetricContract
from fedrec.testing.planted import last_out, planted, planted_features
from fedrec.testing.recommenders import RecommenderContract, train

__all__ = [
    "AggregationRuleContract",
    "EncoderContract",
    "LoaderContract",
    "MechanismContract",
    "MetricContract",
    "RecommenderContract",
    "last_out",
    "planted",
    "planted_features",
    "train",
]
