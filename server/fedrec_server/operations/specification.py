"""What nodes and coordinator need of a configuration: model, rounds, evaluation, privacy, aggregation.

An experiment is this and the data that its researcher holds (`fedrec_simulations`). A job is this and
how its devices come together (`fedrec_server.jobs`). Private facts (numbers of users, file contents) are not part of
it. Read with neither torch nor numba. Out of scope: carrying it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag, model_validator

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.core.recommender import Sending
from fedrec.evaluation.answers import Ranker
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.neural.example_gradients import device_model_of
from fedrec.recommenders.registry import ModelConfig, build
from fedrec.rounds.aggregation import rule_problems
from fedrec.rounds.compression import Compression
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec_server.operations.configuration import override, parse, read_toml
from fedrec_server.operations.sections import (
    FederationSection,
    NoPrivacy,
    PrivacySection,
    SecaggSection,
    Section,
)

#: Fewer nodes than this in a sum are worth a warning.
SMALL_COHORT = 10
#: Sections and a key of an experiment that no operator needs.
RESEARCHERS = ("data", "split")
HELD_DATA = "held_data"


def _privacy_kind(section: Any) -> str:
    unit = section.get("unit") if isinstance(section, dict) else getattr(section, "unit", None)
    return "none" if unit in ("none", None) else "private"


class TaskSpecification(Section):
    """A task before it is known who takes part."""

    name: str = "run"
    model: ModelConfig
    federation: FederationSection = FederationSection()
    secagg: SecaggSection = SecaggSection()
    evaluation: EvaluationSettings = EvaluationSettings()
    privacy: Annotated[
        Annotated[NoPrivacy, Tag("none")] | Annotated[PrivacySection, Tag("private")],
        Discriminator(_privacy_kind),
    ]

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        self._model_fits()
        if isinstance(self.privacy, PrivacySection) and self.federation.sampling != "poisson":
            raise ValueError(
                f"federation.sampling is {self.federation.sampling!r} beside a privacy target: what sampling adds to "
                "privacy is proven for independent coins; drop federation.sampling"
            )
        if isinstance(self.privacy, PrivacySection) and self.federation.clip_norm is not None:
            raise ValueError(
                f"federation.clip_norm is {self.federation.clip_norm} beside a privacy target: the plan bounds "
                "updates by privacy.clip_norm; drop federation.clip_norm"
            )
        if isinstance(self.privacy, PrivacySection) and self.privacy.unit == "interaction":
            try:
                device_model_of(build(self.model))
            except PrivacyRefused as error:
                raise ValueError(str(error)) from error
        self._evaluation_fits()
        if self.federation.compression is not None:
            self._compression_fits(self.federation.compression)
        if self.privacy.aggregator == "secagg":
            self._secagg_fits()
        self._rule_fits()
        return self

    def _model_fits(self) -> None:
        """Raises ValueError where the model states that it cannot be trained in this way."""
        compression = self.federation.compression
        sending = Sending(
            sampling_rate=self.federation.sampling_rate,
            compressed=compression is not None,
            partly=compression is not None and (compression.rank is not None or compression.rows is not None),
            limit=self.node_settings().shard_parameters,
        )
        problems = build(self.model).conflicts(sending)
        if problems:
            raise ValueError("; ".join(problems))

    def _evaluation_fits(self) -> None:
        """Raises ValueError where something cannot be measured."""
        evaluated, chosen = self.evaluation.probabilities, self.federation.select_metric
        if evaluated and not isinstance(build(self.model), Ranker):
            raise ValueError(
                f"evaluation.probabilities is true and model {self.model.kind!r} gives none: drop it, "
                "or train a ranker"
            )
        if chosen.startswith("answers/") and not evaluated:
            raise ValueError(f"federation.select_metric is {chosen!r}: set evaluation.probabilities = true")

    def _compression_fits(self, compression: Compression) -> None:
        """Raises ValueError where an update cannot be made smaller in that way."""
        exact = compression.rows is not None or compression.feedback or compression.bits is not None
        problems = {
            "federation.compression.bits is set under secure aggregation: what is summed there are integers of one "
            "scale; set secagg.bits = 16 in its place": (
                compression.bits is not None and self.privacy.aggregator == "secagg"
            ),
            "federation.compression under a privacy target goes with rank alone: noise is added to what is sent; "
            "drop rows, feedback and bits": exact and isinstance(self.privacy, PrivacySection),
            "federation.compression.rows and federation.shard_parameters both leave rows out: drop one of them": (
                compression.rows is not None and self.federation.shard_parameters is not None
            ),
        }
        if any(problems.values()):
            raise ValueError("; ".join(text for text, wrong in problems.items() if wrong))

    def _secagg_fits(self) -> None:
        """Raises ValueError where sums in integers cannot be had."""
        privacy, instead = self.privacy, "set privacy.aggregator = 'sealed'"
        problems = {
            f"federation.nodes is {self.federation.nodes}: secure aggregation needs at least "
            f"{self.secagg.min_nodes} nodes (secagg.min_nodes)": self.federation.nodes
            < self.secagg.min_nodes,
            "federation.clip_norm is not set: secure aggregation sums integers, which need a bound on one user's "
            f"update; set it, or {instead}": isinstance(privacy, NoPrivacy)
            and self.federation.clip_norm is None,
            "secagg.bits is 16 and secagg.rotate is false: single values would not fit; drop one of them": (
                self.secagg.bits == 16 and not self.secagg.rotation
            ),
        }
        if isinstance(privacy, PrivacySection):
            distributed = privacy.unit == "user" and privacy.trust == "distributed"
            problems |= {
                "privacy.unit is 'interaction': its updates have no fixed bound, so their sum does not fit integers; "
                + instead: privacy.unit == "interaction",
                "privacy.adaptive is set: secure aggregation needs a fixed bound; drop it, or "
                + instead: privacy.adaptive is not None,
                f"privacy.bits is {privacy.bits} and secagg.bits is {self.secagg.bits}: noise shares are summed as "
                "they are; set both alike": distributed and privacy.bits != self.secagg.bits,
            }
        if any(problems.values()):
            raise ValueError("; ".join(text for text, wrong in problems.items() if wrong))

    def _rule_fits(self) -> None:
        """Raises ValueError where the aggregation rule cannot see replies, or would break a privacy plan."""
        problems = rule_problems(
            self.federation.aggregation_rule,
            hidden=self.privacy.aggregator == "secagg",
            private=isinstance(self.privacy, PrivacySection),
            nodes=self.federation.nodes,
        )
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def one_node_suffices(self) -> bool:
        """Whether an engine in one process may put all users on one node: nothing depends on single nodes."""
        return (
            self.privacy.aggregator != "secagg" and not self.federation.aggregation_rule.rule().sees_replies
        )

    def node_settings(self) -> NodeSettings:
        """The part that nodes see."""
        own = {name: getattr(self.federation, name) for name in NodeSettings.model_fields}
        if self.privacy.aggregator == "secagg" and own["shard_parameters"] is None:
            own["shard_parameters"] = self.secagg.dense_parameters
        return NodeSettings(**own)

    def node_evaluation(self) -> EvaluationSettings:
        """What nodes and coordinator know of the evaluation."""
        return EvaluationSettings(
            **{name: getattr(self.evaluation, name) for name in EvaluationSettings.model_fields}
        )

    def round_settings(self) -> RoundSettings:
        """The part that only the coordinator sees."""
        return RoundSettings(**{name: getattr(self.federation, name) for name in RoundSettings.model_fields})

    def warnings(self) -> list[str]:
        """What every report of a run with this configuration must say."""
        privacy = self.privacy
        if privacy.aggregator == "simulated" and isinstance(privacy, NoPrivacy):
            return [
                f"SIMULATION: one process holds all data; no differential privacy, updates are {self._bound()}."
            ]
        clean = isinstance(privacy, NoPrivacy) or (privacy.trust == "central" and privacy.unit == "user")
        lines = self._aggregation_warnings("sum" if clean else "noised contribution")
        if isinstance(privacy, NoPrivacy):
            none = (
                f"NO DIFFERENTIAL PRIVACY: privacy.unit is 'none'; updates are {self._bound()} and no noise is "
                "added."
            )
            return [none, *lines]
        if privacy.noise_seed is not None:
            seeded = "NOT PRIVATE: privacy.noise_seed is set; whoever knows it can take the noise away."
            lines.insert(0, seeded)
        if privacy.force:
            lines.append(
                "NOT CHECKED: privacy.force is set; whether the budget allows learning was not asked."
            )
        return lines

    def _bound(self) -> str:
        clip = self.federation.clip_norm
        return f"clipped to an L2 norm of {clip:g}" if clip else "NOT clipped"

    def _aggregation_warnings(self, what: str) -> list[str]:
        if self.privacy.aggregator == "simulated":
            return [
                f"SIMULATION: one process holds all data and sees the {what} of every node; epsilon speaks of what "
                "the run releases."
            ]
        each = (
            f"the server sees the {what} of every node, which is a single user's where a node hosts one user."
        )
        if self.privacy.aggregator == "plain":
            return [f"NO SECURE AGGREGATION: privacy.aggregator is 'plain' (insecure); {each}"]
        if self.privacy.aggregator == "sealed":
            return [f"SEALED, NOT SECURE AGGREGATION: replies are encrypted on their way, and {each}"]
        if self.secagg.min_nodes < SMALL_COHORT and self.federation.nodes < SMALL_COHORT:
            return [
                f"SMALL COHORT: secure aggregation over {self.federation.nodes} nodes, sums of "
                f"{self.secagg.min_nodes} are let out; nodes that work together can tell what the others sent."
            ]
        return []


def load_specification(path: Path, overrides: Sequence[str] = ()) -> TaskSpecification:
    """Read a task from a TOML file and apply overrides `a.b=value`.

    The file of an experiment is one of a task, too: its sections `data` and `split` are passed over.

    Raises:
        ConfigError: the file cannot be read, or any value is wrong; the message lists all problems.
    """
    plain = override(read_toml(path), overrides)
    plain = {name: values for name, values in plain.items() if name not in RESEARCHERS}
    evaluation = plain.get("evaluation")
    if isinstance(evaluation, dict) and evaluation.pop(HELD_DATA, False):
        raise ConfigError(
            f"{path}: evaluation.{HELD_DATA} is true: a task's data is on users' devices; drop it"
        )
    return parse(TaskSpecification, plain, (), str(path))
