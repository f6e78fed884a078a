"""What a coordinator's run is and where it stands: written to its folder, read by every start.

Out of scope: carrying it out (`coordinator`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.core.files import write_json
from fedrec.core.messages import Phase
from fedrec.core.registry import OWN_CONFIGURATION
from fedrec.core.updates import State
from fedrec.evaluation.settings import EvaluationSettings, parse_evaluation
from fedrec.privacy.private_files import make_private
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import ModelConfig, parse
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec.secagg.terms import Terms, parse_terms

#: Public features of the items [I, F], in the coordinator's folder of a run that has them.
FEATURES_FILE = "features.safetensors"
#: Private key to which nodes seal their replies, in the coordinator's folder until the run is finished.
SEALED_KEY = "sealed.key"


@dataclass(frozen=True)
class Task:
    """What a run is, apart from its data: written once, read by every start of the coordinator."""

    model: ModelConfig
    settings: NodeSettings
    rounds: RoundSettings
    evaluation: EvaluationSettings
    n_items: int
    config_hash: str
    has_validation: bool
    has_test: bool
    privacy: PrivacyTerms | None = None
    aggregation: Terms = field(kw_only=True)

    def write(self, folder: Path) -> None:
        """Write `task.json` into the coordinator's folder, which only its owner can look into."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_private(folder)
        parts = ("model", "settings", "rounds", "evaluation", "privacy", "aggregation")
        plain = {name: (part := getattr(self, name)) and part.model_dump(mode="json") for name in parts}
        rest = ("n_items", "config_hash", "has_validation", "has_test")
        write_json(folder / "task.json", plain | {name: getattr(self, name) for name in rest})

    @classmethod
    def read(cls, folder: Path) -> Task:
        """The task of a folder.

        Raises:
            RunError: there is none, or it cannot be read.
            ConfigError: evaluation settings that no coordinator has, such as those of a simulation alone.
        """
        try:
            plain = json.loads((folder / "task.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{folder} has no readable task.json ({error}): prepare the run first") from error
        return cls(
            parse(plain["model"], paths=True),
            NodeSettings.model_validate(plain["settings"]),
            RoundSettings.model_validate(plain["rounds"], context=OWN_CONFIGURATION),
            parse_evaluation(plain["evaluation"], paths=True),
            plain["n_items"],
            plain["config_hash"],
            plain["has_validation"],
            plain["has_test"],
            PrivacyTerms.model_validate(plain["privacy"]) if plain["privacy"] else None,
            aggregation=parse_terms(plain["aggregation"]),
        )


@dataclass
class Progress:
    """Where a run stands; lies in the header of every checkpoint."""

    phase: Phase
    round: int = 0
    best_round: int = 0
    best_value: float = -1.0
    stale: int = 0
    abandoned: int = 0
    records: int = 0
    totals: dict[str, float] = field(
        default_factory=lambda: {"bytes_up": 0.0, "bytes_down": 0.0, "seconds": 0.0}
    )
    done: bool = False


@dataclass
class Standing:
    """The checkpoint state of a run.

    Attributes:
        shared: the model, which is broadcast.
        server: what the server keeps to itself (moments of its optimiser).
        stages: what the stages of the chain remember.
        progress: rounds done.
    """

    shared: State
    server: State
    stages: State
    progress: Progress

    def arrays(self) -> State:
        """All states under names of their own."""
        states = {"shared/": self.shared, "server/": self.server, "stages/": self.stages}
        return {prefix + name: values for prefix, state in states.items() for name, values in state.items()}
