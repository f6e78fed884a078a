"""What is measured: one frozen object that every node of a run shares.

Everything in it is public. Out of scope: which part is held out (`fedrec.data.split`) and when a model is
evaluated (the coordinator).
"""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedrec.core.errors import ConfigError
from fedrec.core.registry import OWN_CONFIGURATION, paths_allowed
from fedrec.evaluation.names import METRICS, shown


class EvaluationSettings(BaseModel):
    """What is measured of every evaluated user.

    Attributes:
        ks: cut-offs of the metrics "at k".
        metrics: metrics of others that are measured beside fedrec's own: names, or import paths in a configuration of
            one's own.
        negatives: how many unseen items stand beside the held-out ones in the sampled protocol.
        group_bounds: a user with fewer interactions in the history than the first bound is of the group
            "few", with fewer than the second of "middle", else of "many".
        bootstrap: B, number of bootstrap replicates behind the intervals; 0: no intervals.
        sampled: measure against `negatives` sampled items (for comparison with papers).
        full: measure against all unseen items (the protocol on which decisions are taken).
        evaluated_part: part of the users who are evaluated, chosen by a hash of the user; for very large populations.
        probabilities: evaluate also how likely a ranker says the held-out events are; for models that say so.
        list_k: length of the lists behind coverage, novelty, Gini and diversity; 0: these are not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ks: tuple[int, ...] = Field(default=(10, 20), min_length=1)
    metrics: tuple[str, ...] = ()
    negatives: int = Field(default=99, ge=1)
    group_bounds: tuple[int, int] = (10, 50)
    bootstrap: int = Field(default=200, ge=0, le=10_000)
    sampled: bool = True
    full: bool = True
    probabilities: bool = False
    evaluated_part: float = Field(default=1.0, gt=0, le=1)
    list_k: int = Field(default=10, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _no_held_data(cls, values: Any) -> Any:
        """A node, a device and a coordinator know no evaluation but the run's own."""
        if isinstance(values, dict) and "held_data" in values and "held_data" not in cls.model_fields:
            raise ValueError(
                "held_data belongs to simulations, whose researcher holds all the data: nodes, devices and "
                "deployments refuse it; leave it out"
            )
        return values

    @field_validator("metrics")
    @classmethod
    def _are_known(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        own = METRICS.builtin_names()
        for name in names:
            try:
                METRICS.get(name, paths=paths_allowed(info.context))
            except ConfigError as error:
                raise ValueError(str(error)) from error
        twice = [name for name in names if [*own, *map(shown, names)].count(shown(name)) > 1]
        if twice:
            raise ValueError(
                f"{twice[0]!r} is measured twice: name metrics once, without fedrec's own ({', '.join(own)})"
            )
        return names

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationSettings:
        if any(k < 1 for k in self.ks) or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"ks={self.ks}: expected different cut-offs of at least 1, for example (10, 20)")
        if not 0 < self.group_bounds[0] < self.group_bounds[1]:
            raise ValueError(
                f"group_bounds={self.group_bounds}: expected two growing lengths, for example (10, 50)"
            )
        if not (self.sampled or self.full):
            raise ValueError(
                "sampled and full are both false: switch on at least one, nothing is measured otherwise"
            )
        return self

    def quick(self) -> EvaluationSettings:
        """The same metrics without intervals and lists: what choosing a round needs."""
        return self.model_copy(update={"bootstrap": 0, "list_k": 0})

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the measured candidate sets, as they stand before the slash of a metric's name."""
        return ("full",) * self.full + ("sampled",) * self.sampled


def parse_evaluation(plain: object, *, paths: bool = False) -> EvaluationSettings:
    """Settings from JSON values that `model_dump` gave, as nodes, devices and coordinators read them.

    Args:
        plain: the values.
        paths: whether import paths are followed: where the values are the caller's own.

    Raises:
        ConfigError: in one line, what is wrong.
    """
    try:
        return EvaluationSettings.model_validate(plain, context=OWN_CONFIGURATION if paths else None)
    except ValidationError as error:
        problems = "; ".join(
            ".".join(map(str, item["loc"]))
            + ": " * bool(item["loc"])
            + item["msg"].removeprefix("Value error, ")
            for item in error.errors()
        )
        raise ConfigError(f"evaluation settings: {problems}") from error
