"""What a node may say about an evaluation: sums over its users, and nothing else.

Everything here is additive: merging the sums of shards gives the sums of all users. The sums of a node with
ONE user are that user's own numbers, and its item counts are that user's history and list; they are meant
for the same secure sum as model updates, or for nodes that host many users (see
docs/explanation/evaluation.md).

Letters: I items, G = 3 groups by history length, B bootstrap replicates.
Out of scope: means and intervals (`fedrec.evaluation.report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError
from fedrec.evaluation._bootstrap import MAX_WEIGHT
from fedrec.evaluation._ranking_metrics import RankerSums
from fedrec.evaluation.metrics import metric_names
from fedrec.evaluation.settings import EvaluationSettings

Floats = NDArray[np.float64]
Numbers = NDArray[Any]

METRIC = "metric/"
ANSWER = "answer/"
#: Slack for rounding in sums of values that lie in [0, 1].
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class MetricSums:
    """Sums over the evaluated users (those of whom something is held out) of some nodes.

    Attributes:
        protocol: [4] int64: the two group bounds, `list_k` and `negatives`; sums of different protocols
            never merge.
        users: [G, 1 + B] sums of the weights; column 0 is the number of users.
        metrics: name (as `full/ndcg@10`) to [G, 1 + B] weighted sums.
        recommended: [I] lists that contain each item; [0] if lists are not measured.
        seen: [I] users who have each item in their history, evaluated or not; [0] if lists are not measured.
        diversity: [2] sum over users of intra-list diversity, and the number of users it is known for.
        population: [1] users behind `seen`.
        unscored: [1] evaluated users for whom a score was missing (NaN).
        answers: what a ranker's probabilities were worth; None if they are not evaluated.
    """

    protocol: NDArray[np.int64]
    users: Floats
    metrics: Mapping[str, Floats]
    recommended: Floats
    seen: Floats
    diversity: Floats
    population: Floats
    unscored: Floats
    answers: RankerSums | None = None

    @classmethod
    def empty(cls, settings: EvaluationSettings, n_items: int) -> MetricSums:
        """The sums over no one: where merging starts, and the shape of every honest answer."""
        names = [
            f"{protocol}/{name}"
            for protocol in settings.protocols
            for name in metric_names(settings.ks, settings.metrics)
        ]
        shape, items = (3, 1 + settings.bootstrap), n_items if settings.list_k else 0
        return cls(
            np.array([*settings.group_bounds, settings.list_k, settings.negatives], dtype=np.int64),
            np.zeros(shape),
            {name: np.zeros(shape) for name in names},
            np.zeros(items),
            np.zeros(items),
            np.zeros(2),
            np.zeros(1),
            np.zeros(1),
            RankerSums.empty() if settings.probabilities else None,
        )

    def merge(self, other: MetricSums) -> MetricSums:
        """The sums over the users of both.

        Raises:
            ProtocolError: the two were measured under different settings.
        """
        other._require_alike(self)
        mine, theirs = self.to_arrays(), other.to_arrays()
        return _build({name: mine[name] + theirs[name] for name in mine} | {"protocol": self.protocol})

    def to_arrays(self) -> dict[str, Numbers]:
        """Everything by name, as it travels."""
        plain: dict[str, Numbers] = {name: getattr(self, name) for name in PLAIN}
        answers = {} if self.answers is None else self.answers.to_arrays()
        plain |= {ANSWER + name: values for name, values in answers.items()}
        return plain | {METRIC + name: values for name, values in self.metrics.items()}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Numbers],
        like: MetricSums | None = None,
        max_users: int | None = None,
    ) -> MetricSums:
        """Read what another machine sent; nothing in it is trusted.

        Args:
            arrays: names and values of `to_arrays`.
            like: sums whose names, shapes and protocol are expected (`MetricSums.empty`).
            max_users: most users that the sender can have.

        Raises:
            ProtocolError: names, shapes or kinds are wrong, a value is not finite, or the sums are
                impossible (a metric outside [0, 1], more users than the sender has).
        """
        whole = PLAIN + ANSWERS * any(name.startswith(ANSWER) for name in arrays)
        missing = [name for name in whole if name not in arrays]
        strange = [name for name in arrays if name not in whole and not name.startswith(METRIC)]
        if missing or strange:
            raise ProtocolError(
                f"evaluation reply lacks {missing} and has unknown {strange}: run one version of fedrec"
            )
        sums = _build({name: _number(name, values) for name, values in arrays.items()})
        sums._require_shapes()
        if like is not None:
            sums._require_alike(like)
        sums._require_possible(max_users)
        return sums

    def _require_shapes(self) -> None:
        shape = self.users.shape
        if len(shape) != 2 or shape[0] != 3 or shape[1] < 1 or self.recommended.ndim != 1:
            raise ProtocolError(f"evaluation reply: users of shape {shape}, expected (3, 1 + replicates)")
        expected = dict.fromkeys((METRIC + name for name in self.metrics), shape) | {
            "protocol": (4,),
            "seen": self.recommended.shape,
            "diversity": (2,),
            "population": (1,),
            "unscored": (1,),
        }
        if self.answers is not None:
            expected |= {ANSWER + name: a.shape for name, a in RankerSums.empty().to_arrays().items()}
        arrays = self.to_arrays()
        for name, want in expected.items():
            if arrays[name].shape != want:
                raise ProtocolError(
                    f"evaluation reply: {name} of shape {arrays[name].shape}, expected {want}"
                )

    def _require_alike(self, like: MetricSums) -> None:
        mine, theirs = self.to_arrays(), like.to_arrays()
        same_shapes = {n: a.shape for n, a in mine.items()} == {n: a.shape for n, a in theirs.items()}
        if not same_shapes or not np.array_equal(self.protocol, like.protocol):
            raise ProtocolError(
                "evaluation sums of different settings or catalogues: run all nodes with one configuration"
            )

    def _require_possible(self, max_users: int | None) -> None:
        evaluated, population = float(self.users[:, 0].sum()), float(self.population[0])
        bounds: list[tuple[str, Floats, Floats | float]] = [
            ("users", self.users, MAX_WEIGHT * self.users[:, :1]),
            ("population", self.population, np.inf if max_users is None else max_users),
            ("evaluated users", np.array([evaluated]), population),
            ("recommended", self.recommended, evaluated),
            ("all recommended", np.array([self.recommended.sum()]), evaluated * float(self.protocol[2])),
            ("seen", self.seen, population),
            ("diversity", self.diversity, evaluated),
            ("unscored", self.unscored, evaluated),
            *((name, values, self.users) for name, values in self.metrics.items()),
            *(() if self.answers is None else self.answers.bounds(evaluated)),
        ]
        for name, values, bound in bounds:
            if np.any(values < -TOLERANCE) or np.any(values > bound + TOLERANCE * (1 + evaluated)):
                raise ProtocolError(
                    f"evaluation reply: {name} outside its possible range; the node's sums are discarded"
                )


PLAIN = ("protocol", "users", "recommended", "seen", "diversity", "population", "unscored")
ANSWERS = tuple(ANSWER + name for name in RankerSums.empty().to_arrays())


def _build(arrays: Mapping[str, Numbers]) -> MetricSums:
    floats = {name: values.astype(np.float64) for name, values in arrays.items() if name != "protocol"}
    metrics = {name.removeprefix(METRIC): a for name, a in floats.items() if name.startswith(METRIC)}
    plain = {name: floats[name] for name in PLAIN if name != "protocol"}
    answers = {name.removeprefix(ANSWER): floats[name] for name in ANSWERS if name in floats}
    return MetricSums(
        arrays["protocol"].astype(np.int64),
        metrics=metrics,
        answers=RankerSums.from_arrays(answers) if answers else None,
        **plain,
    )


def _number(name: str, values: Numbers) -> Numbers:
    if (
        not isinstance(values, np.ndarray)
        or values.dtype.kind not in "fiu"
        or not np.all(np.isfinite(values))
    ):
        raise ProtocolError(
            f"evaluation reply: {name} is not an array of finite numbers; the node's sums are discarded"
        )
    return values
