"""The configuration of a run: one frozen model per section, read from TOML, all problems reported at once.

Private facts (numbers of users, file contents) are no configuration. Out of scope: carrying it out.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from fedrec.errors import ConfigError, PrivacyRefused
from fedrec.evaluation.answers import Ranker
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.learning.compression import Compression
from fedrec.learning.device_module import device_model_of
from fedrec.learning.settings import NodeSettings, RoundSettings
from fedrec.models.deepfm import DeepFmConfig
from fedrec.models.registry import KINDS, ModelConfig, build
from fedrec.privacy.settings import PrivacySettings
from fedrec_simulations.features import FeatureSettings

#: Fewer nodes than this in a sum are worth a warning.
SMALL_COHORT = 10


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SyntheticSection(Section):
    """Made-up users in place of the real ones, who only show how users behave (see `population`).

    Attributes:
        factor: how many made-up users per real one.
        seed: of every draw.
    """

    factor: float = Field(gt=0)
    seed: int = 0


class DataSection(Section):
    """Which interactions, and what is removed from them.

    Attributes:
        name: a data set known to `fedrec data`, or "file" for one described by `path` and the columns.
        path: file, folder or zip of the original files; the bundled set needs none.
        download: fetch the original files when `path` is not given.
        user_column, item_column, rating_column, timestamp_column: for name = "file".
        rating_range: lowest and highest possible rating; interactions outside are dropped; None: not checked.
        min_rating: interactions rated below it are dropped, the others count 1; None: every interaction counts 1.
        ratings: values stay the ratings instead of 1, for models that learn them.
        core: k, users and items with fewer than k interactions are removed until none is left; 1: none.
        items: for name = "file": a table of the items with the columns item and, where there, title, categories
            ("a|b") and text; None: nothing is known of them.
        features: public vectors of the items, for models that read them; None: none.
        reviews: encoder of what people wrote, for models that read it; the text itself is not kept; None: left out.
        review_column: for name = "file".
        synthetic: a made-up population fitted to the data, of any size; None: the data themselves.
    """

    name: str = "movietweetings"
    path: Path | None = None
    download: bool = False
    user_column: str = "user"
    item_column: str = "item"
    rating_column: str | None = None
    timestamp_column: str | None = None
    rating_range: tuple[float, float] | None = None
    min_rating: float | None = None
    ratings: bool = False
    core: int = Field(default=1, ge=1)
    items: Path | None = None
    features: FeatureSettings | None = None
    reviews: str | None = None
    review_column: str | None = None
    synthetic: SyntheticSection | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.ratings and self.min_rating is not None:
            raise ValueError(
                "data.ratings keeps every rating and data.min_rating drops some: give one of them"
            )
        if self.reviews is not None and self.synthetic is not None:
            raise ValueError("data.synthetic makes up people who write nothing: leave data.reviews out")
        if self.name == "file" and (self.reviews is None) != (self.review_column is None):
            raise ValueError(
                "data.reviews (an encoder) and data.review_column belong together: give both, or neither"
            )
        if self.items is not None and self.name != "file":
            raise ValueError(f"data.items describes the items of a file of your own, not of {self.name!r}")
        return self


class SplitSection(Section):
    """What is held out.

    Attributes:
        method: "leave_one_out" (the last interaction of each user), "temporal" (the last of all),
            "per_user_ratio", "held_out_users", "column" (the data file says it itself), "folder" (written by fedrec).
        validation: hold out a validation part, too, on which rounds are chosen.
        ties: which of several last interactions with one time stamp is the last (leave_one_out).
        fraction: of interactions (temporal, per_user_ratio) or users (held_out_users) in the test part.
        targets: what is held back of a user, the "latest" interactions or "random" ones (leave_one_out,
            held_out_users).
        path: of a split folder or of a file with a split column.
    """

    method: Literal["leave_one_out", "temporal", "per_user_ratio", "held_out_users", "column", "folder"] = (
        "leave_one_out"
    )
    validation: bool = True
    ties: Literal["file_order", "smallest_item", "largest_item"] = "file_order"
    fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    targets: Literal["latest", "random"] = "latest"
    path: Path | None = None


class Aggregation(BaseModel):
    """How sums come about.

    Attributes:
        aggregator: "secagg": by secure aggregation, the server sees sums over nodes and nothing else; "sealed":
            encrypted to the server, which sees every node's reply; "plain": everybody on the way sees it, too.
        insecure: must be true beside "plain", so that nobody gets there by accident.
    """

    aggregator: Literal["secagg", "sealed", "plain"] = "secagg"
    insecure: bool = False

    @model_validator(mode="after")
    def _plain_on_purpose(self) -> Self:
        if self.aggregator == "plain" and not self.insecure:
            raise ValueError(
                "aggregator is 'plain': the server would see what every node sends; leave it out for secure "
                "aggregation, or set privacy.insecure = true beside it if that is meant"
            )
        if self.insecure and self.aggregator != "plain":
            raise ValueError(
                f"insecure is true and aggregator is {self.aggregator!r}: only 'plain' is insecure; drop one of them"
            )
        return self


class NoPrivacy(Section, Aggregation):
    """No differential privacy, which is said out loud in every report.

    Attributes:
        unit: "none": clipped or not, sums are not noised, and no privacy guarantee is claimed.
    """

    unit: Literal["none"]


class PrivacySection(PrivacySettings, Aggregation):
    """A differential-privacy target; see `fedrec.privacy.settings`."""


class SecaggSection(Section):
    """Secure aggregation; see `fedrec.secagg.terms`.

    Attributes:
        bits: sums are taken modulo 2^bits.
        rotate: values are rotated before they become integers; None: with 16 bits.
        min_nodes: fewest nodes in a sum.
        threshold: part of a node's neighbourhood whose shares open a secret.
        corrupted: nodes of a neighbourhood that may work with the server.
        neighbours: of a node; None: all up to 100 nodes, above as many as the bounds ask for.
        range_users: for how many users the integers have room; None: for all that are hosted.
        dense_parameters: a gradient of more values is sent in parts, the same random rows by everybody.
    """

    bits: Literal[16, 32] = 32
    rotate: bool | None = None
    min_nodes: int = Field(default=3, ge=3)
    threshold: float = Field(default=2 / 3, gt=0.5, le=1)
    corrupted: int = Field(default=0, ge=0)
    neighbours: int | None = Field(default=None, ge=2)
    range_users: int | None = Field(default=None, ge=1)
    dense_parameters: int = Field(default=1_000_000, ge=1)

    @property
    def rotation(self) -> bool:
        """Whether values are rotated."""
        return self.bits == 16 if self.rotate is None else self.rotate


def _privacy_kind(section: Any) -> str:
    unit = section.get("unit") if isinstance(section, dict) else getattr(section, "unit", None)
    return "none" if unit in ("none", None) else "private"


class FederationSection(RoundSettings, NodeSettings):
    """Rounds and nodes; `nodes` is how many nodes the users are spread over (Flower engines)."""

    nodes: int = Field(default=4, ge=1)


class Config(Section):
    """A whole run."""

    name: str = "run"
    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    model: Annotated[ModelConfig, Field()]
    federation: FederationSection = FederationSection()
    secagg: SecaggSection = SecaggSection()
    evaluation: EvaluationSettings = EvaluationSettings()
    privacy: Annotated[
        Annotated[NoPrivacy, Tag("none")] | Annotated[PrivacySection, Tag("private")],
        Discriminator(_privacy_kind),
    ]

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
        if build(self.model).fixed_rounds is not None and self.federation.sampling_rate < 1.0:
            raise ValueError(
                f"federation.sampling_rate is {self.federation.sampling_rate}: model {self.model.kind!r} takes its "
                "rounds with everybody; set it to 1"
            )
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
        reads = getattr(self.model, "reviews", 0) > 0
        # A split that lies in a folder may hold them already.
        if reads != (self.data.reviews is not None) and self.split.method not in ("folder", "column"):
            raise ValueError(
                "data.reviews (an encoder) and model.reviews (its width, of a model of the next item) belong "
                "together: set both, or neither"
            )
        if isinstance(self.privacy, PrivacySection) and self.privacy.unit == "interaction":
            try:
                device_model_of(build(self.model))
            except PrivacyRefused as error:
                raise ValueError(str(error)) from error
        self._ranker_fits()
        self._evaluation_fits()
        self._scaffold_fits()
        if self.federation.compression is not None:
            self._compression_fits(self.federation.compression)
        if self.privacy.aggregator == "secagg":
            self._secagg_fits()
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

    def _evaluation_fits(self) -> None:
        """Raises ValueError where something cannot be measured."""
        judged, chosen = self.evaluation.probabilities, self.federation.select_metric
        if judged and not isinstance(build(self.model), Ranker):
            raise ValueError(
                f"evaluation.probabilities is true and model {self.model.kind!r} gives none: drop it, "
                "or train 'deepfm'"
            )
        if chosen.startswith("answers/") and not judged:
            raise ValueError(f"federation.select_metric is {chosen!r}: set evaluation.probabilities = true")

    def _scaffold_fits(self) -> None:
        """Raises ValueError where control variates would not get all that is sent of them."""
        scaffold = getattr(self.model, "scaffold", None)
        if scaffold is None:
            return
        made_smaller, limit = self.federation.compression, self.node_settings().shard_parameters
        size = build(self.model).layout(scaffold.items).size
        if limit is not None and size > limit:
            raise ValueError(
                f"model.scaffold sends {size:,} values and {limit:,} are sent in a round: what is left out would be "
                "lost to the control variates; take a smaller model, or raise federation.shard_parameters"
            )
        if made_smaller is not None and (made_smaller.rank or made_smaller.rows):
            raise ValueError(
                "federation.compression.rank and rows leave parts out, which would be lost to the control variates "
                "of model.scaffold: drop one of them"
            )

    def _compression_fits(self, compression: Compression) -> None:
        """Raises ValueError where an update cannot be made smaller in that way."""
        exact = compression.rows is not None or compression.feedback or compression.bits is not None
        problems = {
            f"federation.compression is set and model {self.model.kind!r} sends exact sums, not gradients: each of "
            "them is needed; drop it": not build(self.model).gradient_rounds,
            "federation.compression.bits is set under secure aggregation: what is summed there are integers of one "
            "scale; set secagg.bits = 16 in its place": (
                compression.bits is not None and self.privacy.aggregator == "secagg"
            ),
            "federation.compression under a privacy target goes with rank alone: noise is added to what is sent; "
            "drop rows, feedback and bits": exact and isinstance(self.privacy, PrivacySection),
            "federation.compression is set and model 'clustered' has tables of every cluster, which are not made "
            "smaller: drop it": self.model.kind == "clustered",
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

    def node_settings(self) -> NodeSettings:
        """The part that nodes see."""
        own = {name: getattr(self.federation, name) for name in NodeSettings.model_fields}
        if self.privacy.aggregator == "secagg" and own["shard_parameters"] is None:
            own["shard_parameters"] = self.secagg.dense_parameters
        return NodeSettings(**own)

    def round_settings(self) -> RoundSettings:
        """The part that only the coordinator sees."""
        return RoundSettings(**{name: getattr(self.federation, name) for name in RoundSettings.model_fields})

    def warnings(self) -> list[str]:
        """What every report of a run with this configuration must say."""
        privacy = self.privacy
        clean = isinstance(privacy, NoPrivacy) or (privacy.trust == "central" and privacy.unit == "user")
        lines = self._aggregation_warnings("sum" if clean else "noised contribution")
        if isinstance(privacy, NoPrivacy):
            clip = self.federation.clip_norm
            bound = f"clipped to an L2 norm of {clip:g}" if clip else "NOT clipped"
            none = (
                f"NO DIFFERENTIAL PRIVACY: privacy.unit is 'none'; updates are {bound} and no noise is added."
            )
            return [none, *lines]
        if privacy.noise_seed is not None:
            seeded = "NOT PRIVATE: privacy.noise_seed is set; whoever knows it can take the noise away."
            lines.insert(0, seeded)
        if privacy.force:
            lines.append(
                "NOT CHECKED: privacy.force is set; whether the budget allows learning was not asked."
            )
        if privacy.metrics == "exact":
            lines.append(
                "METRICS ARE NOT PROTECTED: privacy.metrics is 'exact'; sums of evaluation metrics are not noised."
            )
        return lines

    def _aggregation_warnings(self, what: str) -> list[str]:
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
        return Config.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
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


def _problem(item: Any) -> str:
    """One validation error as text: where, what was given, what was expected."""
    where = [str(part) for part in item["loc"] if part not in (*KINDS, "none", "private")]
    place = ".".join(where) or "top level"
    if item["type"] == "extra_forbidden":
        known = _keys_near(where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        return f"unknown key {place}" + (f" (did you mean {near[0]!r}?)" if near else "")
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


def _keys_near(sections: list[str]) -> list[str]:
    """Keys that are known in a section, over all kinds of models."""
    schema = Config.model_json_schema()
    names: set[str] = set()
    if not sections:
        return list(schema["properties"])
    for definition in schema["$defs"].values():
        names |= set(definition.get("properties", {}))
    return sorted(names)
