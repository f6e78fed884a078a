"""The configuration of an experiment: a task and the data that it is tried on, read from TOML.

Private facts (numbers of users, file contents) are not part of it. Out of scope: carrying it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from fedrec.privacy.noised_means import HELD_DATA
from fedrec.recommenders.registry import build
from fedrec_server.operations.configuration import parse, read_toml
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import TaskSpecification
from fedrec_simulations.experiments.sections import DataSection, EvaluationSection, SplitSection


class Config(TaskSpecification):
    """A whole run: what an experiment file says.

    Example:
        >>> import fedrec
        >>> experiment = fedrec.load_experiment("movietweetings-mf")
        >>> isinstance(experiment, fedrec.Experiment), experiment.data.core, experiment.split.method
        (True, 5, 'leave_one_out')
    """

    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _data_fits(self) -> Self:
        """Raises ValueError where the data cannot hold what the model reads."""
        needs, given = build(self.model).needs, self.split.method == "folder"
        problems = {
            f"model {self.model.kind!r} learns ratings and data.ratings is false: every interaction would count 1; "
            "set data.ratings to true": needs.ratings is not None and not self.data.ratings and not given,
            f"model {self.model.kind!r} reads hour and day and the file has no times: set data.timestamp_column, or "
            "model.context to false": (
                needs.times and self.data.name == "file" and not self.data.timestamp_column and not given
            ),
            # A split in a folder may hold them already.
            "data.reviews (an encoder) and model.reviews (its width, of a model of the next item) belong together: "
            "set both, or neither": (
                (needs.reviews > 0) != (self.data.reviews is not None)
                and self.split.method not in ("folder", "column")
            ),
        }
        if any(problems.values()):
            raise ValueError("; ".join(text for text, wrong in problems.items() if wrong))
        return self

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


#: Its name in the Python API.
Experiment = Config


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
