"""Names of metrics at k, apart from what computes them, so that settings and privacy plans can check one without it.

Every evaluated user has each of them in [0, 1]: that is what a private run may release.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec.core.registry import Registry

#: A metric: from the ranks of U users and a cut-off k to [U] values.
Metric = Callable[[Any, int], Any]


def _check(name: str, made: object) -> None:
    if not callable(made):
        raise ConfigError(f"metric {name!r} is {made!r}: expected a function of ranks and a cut-off")


#: Metrics at k by name.
METRICS: Registry[Metric] = Registry("metrics", "metric", (f"{__package__}.metrics",), check=_check)
_FORM = re.compile(r"(full|sampled)/([^@/]+)@([1-9][0-9]{0,3})")


def check_bounded(names: tuple[str, ...]) -> None:
    """Raises ValueError for a metric that is not known, or is named twice."""
    strange = [name for name in names if not _is_known(name)]
    if strange or len(set(names)) < len(names):
        raise ValueError(
            f"metrics {', '.join(strange or names)}: expected different ones such as full/ndcg@10 or sampled/hr@20, "
            "each in [0, 1] for every user"
        )


def parse_bounded(name: str) -> tuple[str, str, int]:
    """(protocol, metric, cut-off) of such a name.

    Raises:
        ConfigError: it is not one.
    """
    found = _FORM.fullmatch(name)
    if found is None:
        raise ConfigError(f"metric {name!r}: expected one such as full/ndcg@10")
    return found[1], found[2], int(found[3])


def shown(metric: str) -> str:
    """How a metric is called in reports: its name, of an import path the last part."""
    return metric.rpartition(":")[2]


def _is_known(name: str) -> bool:
    try:
        METRICS.get(parse_bounded(name)[1])
    except ConfigError:
        return False
    return True
