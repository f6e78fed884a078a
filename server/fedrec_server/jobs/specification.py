"""What a job is: a task, the cohorts that carry it out, when it runs again, and what its result must pass.

    [job]
    participations = 1                 # rounds of a run in which one device takes part at most
    schedule = "every 7 d"             # or "once", "continuous"
    promote = true
    [job.cohort]
    target = 1000
    [job.gates]
    max_epsilon = 4.0

The rounds of a run are `federation.rounds`; nodes and sampling of the federation play no part, because devices come
and go. Out of scope: carrying it out (`work`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from fedrec.core.errors import ConfigError
from fedrec.recommenders.registry import build
from fedrec.recommenders.serving import check_serves
from fedrec_server.operations.configuration import override, parse, read_toml
from fedrec_server.operations.sections import NoPrivacy, PrivacySection, Section
from fedrec_server.operations.specification import HELD_DATA, RESEARCHERS, TaskSpecification
from fedrec_server.rounds.cohorts import Patience

_UNITS = {"h": 3600.0, "d": 86_400.0}
_EVERY = re.compile(r"every ([1-9][0-9]{0,3}) (h|d)")
#: More devices than wanted may join while a cohort is being closed.
_OVER_SELECTION = 1.3


class CohortSection(Section):
    """The devices of one round.

    Attributes:
        target: devices that are enough to start at once; the privacy plan's noise is sized for them.
        least: devices with which to start when the time is over; None: so many that the planned part of the target
            is still there after the expected drop-outs.
        most: devices that may join; None: 1.3 times the target.
        wait_seconds: for which a cohort forms.
        dropout: part of a cohort that is expected to vanish on the way.
        patience: a stage ends when all but half of the expected drop-outs have answered and so many times the time
            that they took has passed; 0: each stage waits for its last device until its deadline.
    """

    target: int = Field(default=100, ge=3)
    least: int | None = Field(default=None, ge=3)
    most: int | None = Field(default=None, ge=3)
    wait_seconds: float = Field(default=3600.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    patience: float = Field(default=2.0, ge=0)


class GatesSection(Section):
    """What a result must pass before it is promoted; it is published in any case.

    Attributes:
        min_participants: devices in the smallest sum of the run.
        max_epsilon: of the run's statement.
        command: a program and its arguments, called with the folder of the packed model as the last one; exit status
            0 passes.
        command_seconds: how long it may take.
    """

    min_participants: int = Field(default=0, ge=0)
    max_epsilon: float | None = Field(default=None, gt=0)
    command: tuple[str, ...] = ()
    command_seconds: float = Field(default=600.0, gt=0)


class JobSection(Section):
    """How a task becomes a job.

    Attributes:
        participations: rounds of one run in which one device takes part at most.
        schedule: "once"; "every N h" or "every N d" from the start of one run to the next; or "continuous".
        promote: a result that passes the gates becomes champion; false: it is published and waits.
        staleness: S, for models that learn by gradients: S + 1 cohorts are at work at once, and a sum counts that is
            up to S versions old (`fedrec_server.rounds.asynchronous`); 0: one after the other.
        retry_seconds, longest_retry_seconds: pause after a failed round, doubled with each one in a row.
        lifetime_days: of the signed task of one run.
        finish: import path "module:function" of what makes the published model of what was trained and the champion.
        cohort: devices of a round.
        gates: of the result.
    """

    participations: int = Field(default=1, ge=1)
    schedule: str = "once"
    promote: bool = True
    staleness: int = Field(default=0, ge=0, le=16)
    retry_seconds: float = Field(default=5.0, gt=0)
    longest_retry_seconds: float = Field(default=600.0, gt=0)
    lifetime_days: float = Field(default=90.0, gt=0)
    finish: str | None = Field(default=None, pattern=r"[\w.]+:\w+")
    cohort: CohortSection = CohortSection()
    gates: GatesSection = GatesSection()

    @field_validator("schedule")
    @classmethod
    def _known(cls, text: str) -> str:
        if text not in ("once", "continuous") and not _EVERY.fullmatch(text):
            raise ValueError("expected 'once', 'continuous', 'every N h' or 'every N d'")
        return text

    @property
    def period_seconds(self) -> float | None:
        """From the start of one run to the next; None: there is no next one."""
        if self.schedule == "once":
            return None
        found = _EVERY.fullmatch(self.schedule)
        return int(found[1]) * _UNITS[found[2]] if found else 0.0


class JobSpecification(TaskSpecification):
    """A task for devices that come and go."""

    job: JobSection = JobSection()

    @model_validator(mode="after")
    def _for_devices(self) -> Self:
        problems = [text for text, wrong in self._problems() if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[tuple[str, bool]]:
        privacy, cohort = self.privacy, self.job.cohort
        measured = isinstance(privacy, PrivacySection) and privacy.metrics != "none"
        read = [name for name in ("features", "reviews") if getattr(self.model, name, 0)]
        rounds = build(self.model).fixed_rounds or self.federation.rounds
        return [
            (
                f"privacy.aggregator is {privacy.aggregator!r}: a job needs 'secagg', because no one should see a "
                "device's own update",
                privacy.aggregator != "secagg",
            ),
            (
                "privacy.metrics is 'noised': devices hold nothing out to be evaluated; leave it out",
                measured,
            ),
            (f"model.{read and read[0]} is set: devices have no such vectors; set it to 0", bool(read)),
            (
                f"federation.sampling_rate is {self.federation.sampling_rate:g}: the devices of a round are those "
                "that are here; set job.cohort.target and leave it out",
                self.federation.sampling_rate != 1.0,
            ),
            (
                f"job.cohort has least {self.least}, target {cohort.target} and most {self.most}: expected them in "
                "this order",
                not self.least <= cohort.target <= self.most,
            ),
            (
                f"job.cohort.least is {self.least}: a sum needs {self.floor} devices (privacy.survivors and "
                "secagg.min_nodes); raise it",
                self.least < self.floor,
            ),
            (
                f"job.staleness is {self.job.staleness} and model {self.model.kind!r} needs its rounds one after the "
                "other: set it to 0",
                self.job.staleness > 0 and not build(self.model).gradient_rounds,
            ),
            (
                f"job.participations is {self.job.participations}: expected at most the {rounds} rounds of a run",
                self.job.participations > rounds,
            ),
        ]

    @property
    def floor(self) -> int:
        """Devices below which no sum is opened."""
        privacy, least = self.privacy, self.secagg.min_nodes
        if isinstance(privacy, PrivacySection) and privacy.trust == "distributed":
            least = max(least, math.ceil(privacy.survivors * self.job.cohort.target - 1e-9))
        return least

    @property
    def least(self) -> int:
        """Devices with which a cohort starts when the time is over."""
        cohort = self.job.cohort
        expected = math.ceil(self.floor / (1.0 - cohort.dropout))
        return min(expected, cohort.target) if cohort.least is None else cohort.least

    @property
    def most(self) -> int:
        """Devices that may join a cohort."""
        cohort = self.job.cohort
        return math.ceil(_OVER_SELECTION * cohort.target) if cohort.most is None else cohort.most

    @property
    def patience(self) -> Patience:
        """Of a stage, with its last devices."""
        cohort = self.job.cohort
        return Patience(cohort.dropout / 2, cohort.patience) if cohort.patience else Patience()

    @property
    def rounds(self) -> int:
        """T, of one run."""
        return build(self.model).fixed_rounds or self.federation.rounds

    @property
    def cycle(self) -> int:
        """A device takes part in at most one of so many rounds in a row."""
        return math.ceil(self.rounds / self.job.participations)

    def warnings(self) -> list[str]:
        """What whoever starts it should know."""
        lines = [line for line in super().warnings() if not line.startswith("SMALL COHORT")]
        if isinstance(self.privacy, NoPrivacy):
            lines.append("Devices under the SDK's default policy refuse a task without a privacy plan.")
        return lines


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobSpecification:
    """Read a job from a TOML file and apply overrides `a.b=value`; sections of researchers are passed over.

    Raises:
        ConfigError: the file cannot be read, or any value is wrong; the message lists all problems.
    """
    return parse_job(override(read_toml(path), overrides), str(path))


def parse_job(plain: dict[str, Any], source: str) -> JobSpecification:
    """A job from plain values.

    Raises:
        ConfigError: any value is wrong; the message lists all problems.
    """
    plain = {name: values for name, values in plain.items() if name not in RESEARCHERS}
    evaluation = dict(plain.get("evaluation") or {})
    if evaluation.pop(HELD_DATA, False):
        raise ConfigError(
            f"{source}: evaluation.{HELD_DATA} is true: a job's data is on users' devices; drop it"
        )
    made = parse(JobSpecification, plain | {"evaluation": evaluation}, (), source)
    check_serves(build(made.model))
    return made
