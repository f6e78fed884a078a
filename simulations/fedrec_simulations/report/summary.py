"""What reports, comparisons and the command line show of a run, read from its folder.

Out of scope: computing metrics (`fedrec.evaluation`), drawing (`plots`, `page`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedrec.core.files import write_json
from fedrec.data.split import Split
from fedrec.evaluation.report import Estimate
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.rounds.task import Task
from fedrec_simulations.experiments.baseline import Baseline
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.run_folder import HELD_FILE, RunFolder

#: The metrics of every comparison, with their names for users.
HEADLINE = {
    "sampled/hr@10": "HR@10, sampled",
    "sampled/ndcg@10": "NDCG@10, sampled",
    "full/ndcg@10": "NDCG@10, all items",
}
GROUPS = ("few", "middle", "many")
#: Exact metrics on data that the researcher holds, in a run's folder (`held_data`).


@dataclass(frozen=True)
class Summary:
    """One run, finished or not."""

    run: RunFolder
    label: str = ""

    @cached_property
    def config(self) -> Config:
        """Its configuration."""
        return self.run.config

    @cached_property
    def name(self) -> str:
        """What it is called in tables."""
        return self.label or self.config.name

    @property
    def model(self) -> str:
        """Kind of recommender."""
        return self.config.model.kind

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """One record per round that counted."""
        return [record for record in self.run.records if not record.get("abandoned")]

    @cached_property
    def result(self) -> dict[str, Any]:
        """The result; empty while the run is not finished."""
        path = self.run.path / "coordinator" / "result.json"
        return self.run.result if path.exists() else {}

    @cached_property
    def baseline(self) -> dict[str, Any] | None:
        """The centralised baseline beside it, if one was trained."""
        return _optional_json(self.run.path / "baseline.json")

    @cached_property
    def started(self) -> dict[str, Any]:
        """Engine and command line."""
        return _optional_json(self.run.path / "command.json") or {"engine": "in-process", "command": ""}

    @property
    def has_test(self) -> bool:
        """Whether there is a test part; a private run may still not look at it."""
        return Task.read(self.run.path / "coordinator").has_test

    @property
    def privacy(self) -> str:
        """The guarantee in a few words; the statement beside the run has all that belongs to it."""
        return privacy_of(self.config)

    @property
    def seconds(self) -> float:
        """Of all rounds, both phases."""
        return float(sum(record["seconds"] for record in self.records))

    @property
    def bytes_up(self) -> float:
        """Sent by a user in a round."""
        return float(self.records[-1]["bytes_up_per_user"]) if self.records else 0.0

    @property
    def bytes_down(self) -> float:
        """Received by a user in a round."""
        return float(self.records[-1]["bytes_down_per_user"]) if self.records else 0.0

    @cached_property
    def held(self) -> dict[str, Any] | None:
        """Exact metrics on data that the researcher holds, which are no release of the run; None: not measured."""
        found = _optional_json(self.run.path / HELD_FILE)
        return None if found is None else dict(found["test"])

    @property
    def exact(self) -> dict[str, Any] | None:
        """The whole report on the test part: the run's own, or of a private run the one on held data."""
        own = self.result.get("test")
        return self.held if own is None or own.get("noised") else dict(own)

    @property
    def is_private(self) -> bool:
        """Whether an epsilon stands beside its figures."""
        return not isinstance(self.config.privacy, NoPrivacy)

    def estimate(self, metric: str, group: str = "all") -> Estimate | None:
        """A metric on the test part as the run let it out, None where it did not."""
        return estimate(self.result.get("test"), metric, group)

    def baseline_estimate(self, metric: str, group: str = "all") -> Estimate | None:
        """The same of the centralised baseline."""
        return estimate(self.baseline and self.baseline.get("test"), metric, group)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.run.path),
            "name": self.name,
            "model": self.model,
            "engine": self.started["engine"],
            "finished": bool(self.result),
            "rounds": self.result.get("rounds"),
            "seconds": self.seconds,
            "bytes_up_per_user_and_round": self.bytes_up,
            "bytes_down_per_user_and_round": self.bytes_down,
            "validation": self.result.get("validation"),
            "test": self.result.get("test"),
            "held_data": _optional_json(self.run.path / HELD_FILE),
            "baseline": self.baseline,
            "privacy_warnings": self.config.warnings(),
        }


def privacy_of(config: Config) -> str:
    """The guarantee that a configuration asks for, in a few words."""
    asked = config.privacy
    if isinstance(asked, NoPrivacy):
        return "none"
    seeded = "simulated " if asked.noise_seed is not None else ""
    return f"{seeded}epsilon {asked.epsilon:g} per {asked.unit}"


def estimate(report: Mapping[str, Any] | None, metric: str, group: str = "all") -> Estimate | None:
    """One metric of an evaluation report in plain types."""
    values = (report or {}).get("metrics", {}).get(group, {}).get(metric)
    return None if values is None else Estimate(**values)


def write_baseline(run: RunFolder, baseline: Baseline) -> None:
    """Put a baseline's result beside a run, where summaries find it."""
    write_json(run.path / "baseline.json", baseline.as_dict())


def side_by_side(runs: Sequence[Summary]) -> list[Summary]:
    """The same runs under short names: without the words all begin with, or as folders where two names are alike."""
    names = [run.config.name for run in runs]
    if len(set(names)) < len(names):
        return [replace(run, label=str(run.run.path)) for run in runs]
    words = [name.split("-") for name in names]
    shared = 0
    while len(runs) > 1 and len({tuple(word[: shared + 1]) for word in words}) == 1:
        shared += 1
    return [replace(run, label="-".join(word[shared:])) for run, word in zip(runs, words, strict=True)]


def same_question(runs: Sequence[Summary]) -> bool:
    """Whether all runs were evaluated on the same held-out items, measured the same way."""
    return len({question_of(run.config, run.run.split) for run in runs}) <= 1


def question_of(config: Config, split: Split) -> str:
    """Digest of what a run was evaluated on and how."""
    digest = hashlib.sha256(config.evaluation.model_dump_json().encode())
    for part in (split.test, split.history("refit")):
        if part is not None:
            for values in (part.user, part.item):
                digest.update(values.tobytes())
    for ids in (split.train.user_ids, split.train.item_ids):
        digest.update("\0".join(ids.tolist()).encode())
    return digest.hexdigest()


def _optional_json(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text())) if path.exists() else None
