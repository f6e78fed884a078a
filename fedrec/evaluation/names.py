"""Names of the metrics that every evaluated user has in [0, 1]: what a private run may release.

Apart from what computes them, so that settings and privacy plans can check a name without it.
"""

from __future__ import annotations

import re

from fedrec.core.errors import ConfigError

_KNOWN = re.compile(r"(full|sampled)/(ndcg|hr|recall|capped_recall|precision|f1|mrr|map)@([1-9][0-9]{0,3})")


def check_bounded(names: tuple[str, ...]) -> None:
    """Raises ValueError for a metric that is not known, or is named twice."""
    strange = [name for name in names if not _KNOWN.fullmatch(name)]
    if strange or len(set(names)) < len(names):
        raise ValueError(
            f"metrics {', '.join(strange or names)}: expected different ones such as full/ndcg@10 or sampled/hr@20, "
            "each in [0, 1] for every user"
        )


def parse_bounded(name: str) -> tuple[str, str, int]:
    """(protocol, metric, cut-off) of such a name.

    Raises:
        ConfigError: it is none.
    """
    found = _KNOWN.fullmatch(name)
    if found is None:
        raise ConfigError(f"metric {name!r}: expected one such as full/ndcg@10")
    return found[1], found[2], int(found[3])
