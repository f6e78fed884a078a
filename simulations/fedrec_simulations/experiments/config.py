"""The configuration of a run: its sections together, read from TOML, all problems reported at once.

Private facts (numbers of users, file contents) are no configuration. Out of scope: carrying it out.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag, ValidationError, model_validator

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.core.recommender import Sending
from fedrec.core.registry import OWN_CONFIGURATION
from fedrec.evaluation.answers import Ranker
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.neural.example_gradients import device_model_of
from fedrec.privacy.noised_means import HELD_DATA
from fedrec.recommenders.registry import RECOMMENDERS, ModelConfig, build
from fedrec.rounds.aggregation import rule_problems
from fedrec.rounds.compression import Compression
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec_simulations.experiments.sections import (
    DataSection,
    EvaluationSection,
    FederationSection,
    NoPrivacy,
    PrivacySection,
    SecaggSection,
    Section,
    SplitSection,
)

#: Errors of a model's kind, whose messages say everything.
KIND_PROBLEMS = ("missing_kind", "unknown_kind", "refused_kind")
#: Fewer nodes than this in a sum are worth a warning.
SMALL_COHORT = 10


def _privacy_kind(section: Any) -> str:
    unit = section.get("unit") if isinstance(section, dict) else getattr(section, "unit", None)
    return "none" if unit in ("none", None) else "private"


class Config(Section):
    """A whole run: what an experiment file says.

    Example:
        >>> import fedrec
        >>> experiment = fedrec.load_experiment("movietweetings-mf")
        >>> isinstance(experiment, fedrec.Experiment), experiment.data.core, experiment.split.method
        (True, 5, 'leave_one_out')
    """

    name: str = "run"
    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    model: ModelConfig
    federation: FederationSection = FederationSection()
    secagg: SecaggSection = SecaggSection()
    evaluation: EvaluationSection = EvaluationSection()
    privacy: Annotated[
        Annotated[NoPrivacy, Tag("none")] | Annotated[PrivacySection, Tag("private")],
        Discriminator(_privacy_kind),
    ]

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
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
        self._data_fit()
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

    def _data_fit(self) -> None:
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
        return self.evaluation.of_nodes()

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
        if self.evaluation.held_data:
            lines.append(f"HELD DATA: evaluation.held_data is set; exact metrics are {HELD_DATA}.")
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


#: Its name in the Python API.
Experiment = Config


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply overrides `a.b=value` (value in TOML; bare words are text).

    Raises:
        ConfigError: the file cannot be read, or any value is wrong; the message lists all problems.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"configuration {path} cannot be read ({error.strerror}): give an existing TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {path} is no TOML ({error}): mend the line named") from error
    return parse_config(values, overrides, str(path))


def parse_config(
    values: dict[str, Any], overrides: Sequence[str] = (), source: str = "configuration"
) -> Config:
    """A configuration from plain values; see `load_config`."""
    for override in overrides:
        _override(values, override)
    try:
        return Config.model_validate(values, context=OWN_CONFIGURATION)
    except ValidationError as error:
        problems = "; ".join(_problem(item, values) for item in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def _override(values: dict[str, Any], text: str) -> None:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise ConfigError(
            f"--set {text!r}: expected section.key=value, for example --set federation.rounds=5"
        )
    *sections, key = path.strip().split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(
                f"--set {text!r}: {section!r} is a value, not a section; see `fedrec config show`"
            )
    try:
        target[key] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        target[key] = value


def _problem(item: Any, values: dict[str, Any]) -> str:
    """One validation error as text: where, what was given, what was expected."""
    where = [str(part) for part in item["loc"] if part not in ("none", "private")]
    place = ".".join(where) or "top level"
    if item["type"] == "extra_forbidden":
        known = _keys_near(where[:-1], values)
        near = difflib.get_close_matches(where[-1], known, n=1)
        return f"unknown key {place}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if item["type"] in KIND_PROBLEMS:
        return str(item["msg"]) if item["type"] == "unknown_kind" else f"{place}: {item['msg']}"
    if item["type"] == "missing":
        hint = {
            "privacy": " (nothing is assumed: set privacy.unit, 'none' switches differential privacy off)",
            "model": " (set model.kind)",
        }.get(place, "")
        return f"{place} is missing{hint}"
    if not where:
        return str(item["msg"]).removeprefix("Value error, ")
    given = json.dumps(item.get("input"), default=str)
    return f"{place} = {given[:80]}: {item['msg'].removeprefix('Value error, ')}"


def _keys_near(sections: list[str], values: dict[str, Any]) -> list[str]:
    """Keys that are known in a section; deeper within a model, those of all kinds."""
    if sections == ["model"]:
        return list(RECOMMENDERS.get(values["model"]["kind"], paths=True).config_class.model_fields)
    schema = Config.model_json_schema()
    return sorted(set(_keys(schema))) if sections else list(schema["properties"])


def _keys(schema: object) -> Iterator[str]:
    """Names of properties anywhere in a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _keys(part)
