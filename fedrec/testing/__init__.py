"""Contract tests for what is added from outside: subclass one, say what is tested, and run pytest.

    from fedrec.testing import RecommenderContract

    class TestTransitions(RecommenderContract):
        model = {"kind": "my_package:Transitions"}

fedrec's own recommenders, loaders, metrics and encoders pass the same tests. Needs pytest.
"""

from __future__ import annotations

from fedrec.testing.encoders import EncoderContract
from fedrec.testing.loaders import LoaderContract
from fedrec.testing.metrics import MetricContract
from fedrec.testing.planted import last_out, planted, planted_features
from fedrec.testing.recommenders import RecommenderContract, train

__all__ = [
    "EncoderContract",
    "LoaderContract",
    "MetricContract",
    "RecommenderContract",
    "last_out",
    "planted",
    "planted_features",
    "train",
]
