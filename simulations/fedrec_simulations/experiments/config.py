"""The configuration of an experiment: a task and the data that it is tried on, read from TOML.

Private facts (numbers of users, file contents) are not part of it. Out of scope: carrying it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from fedrec.privacy.noised_means import HELD_DATA
from fedrec.recommenders.ctr.deepfm import DeepFmConfig
from fedrec_server.operations.configuration import parse, read_toml
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import TaskSpecification
from fedrec_simulations.experiments.sections import DataSection, EvaluationSection, SplitSection


class Config(TaskSpecification):
    """A whole run."""

    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _data_fits(self) -> Self:
        reads = getattr(self.model, "reviews", 0) > 0
        # A split that lies in a folder may hold them already.
        if reads != (self.data.reviews is not None) and self.split.method not in ("folder", "column"):
            raise ValueError(
                "data.reviews (an encoder) and model.reviews (its width, of a model of the next item) belong "
                "together: set both, or neither"
            )
        self._ranker_fits()
        return self

    def _ranker_fits(self) -> None:
        """Raises ValueError where the data cannot hold what a ranker learns."""
        model, given = self.model, self.split.method == "folder"
        if not isinstance(model, DeepFmConfig):
            return
        if model.target == "rating" and not self.data.ratings and not given:
            raise ValueError(
                "model.target is 'rating' and data.ratings is false: every interaction would count 1; "
                "set data.ratings to true"
            )
        if model.context and self.data.name == "file" and not self.data.timestamp_column and not given:
            raise ValueError(
                "model.context reads hour and day and the file has no times: set data.timestamp_column, or "
                "model.context to false"
            )

    def task(self) -> TaskSpecification:
        """The part that an operator needs: without the data and what only its holder may measure."""
        parts = {name: getattr(self, name) for name in TaskSpecification.model_fields}
        return TaskSpecification.model_construct(**parts | {"evaluation": self.node_evaluation()})

    def warnings(self) -> list[str]:
        """What every report of a run with this configuration must say."""
        lines = super().warnings()
        if self.evaluation.held_data and not isinstance(self.privacy, NoPrivacy):
            lines.append(f"HELD DATA: evaluation.held_data is set; exact metrics are {HELD_DATA}.")
        return lines


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply overrides `a.b=value` (value in TOML; bare words are text).

    Raises:
        ConfigError: the file cannot be read, or any value is wrong; the message lists all problems.
    """
    return parse_config(read_toml(path), overrides, str(path))


def parse_config(
    values: dict[str, Any], overrides: Sequence[str] = (), source: str = "configuration"
) -> Config:
    """A configuration from plain values; see `load_config`."""
    return parse(Config, values, overrides, source)
