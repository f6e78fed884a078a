"""The sections of an experiment, each a frozen model that knows what fits within itself.

Out of scope: what goes with what in other sections (`config`), and carrying anything out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrec.core.errors import ConfigError
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.privacy.settings import PrivacySettings
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec_simulations.experiments.features import FeatureSettings

#: Name of data that a caller of the Python API holds.
IN_MEMORY = "memory"


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """A section from values that a caller gave.

        Raises:
            ConfigError: in one line, all that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = (
                f"{'.'.join(map(str, item['loc']))} = {str(item['input'])[:80]!r}: {item['msg']}"
                if item["loc"]
                else item["msg"]
                for item in error.errors()
            )
            raise ConfigError("; ".join(problems).replace("Value error, ", "")) from error


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
        name: a data set known to `fedrec data`, "file" for one described by `path` and the columns, or "memory" for
            one that a caller of the Python API holds.
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
        reviews: encoder of what users wrote, for models that read it; the text itself is not kept; None: left out.
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
            raise ValueError("data.synthetic makes up users who write nothing: leave data.reviews out")
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
        seed: of the draws; None: federation.seed.
    """

    method: Literal["leave_one_out", "temporal", "per_user_ratio", "held_out_users", "column", "folder"] = (
        "leave_one_out"
    )
    validation: bool = True
    ties: Literal["file_order", "smallest_item", "largest_item"] = "file_order"
    fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    targets: Literal["latest", "random"] = "latest"
    path: Path | None = None
    seed: int | None = None


class EvaluationSection(EvaluationSettings):
    """What is measured, and by whom.

    Attributes:
        held_data: also measure the final model exactly, in this process, on the data that the researcher of a
            simulation holds himself: no release, not covered by epsilon, refused by every deployment.
    """

    held_data: bool = False

    def of_nodes(self) -> EvaluationSettings:
        """The part that nodes and coordinator know."""
        return EvaluationSettings(**{name: getattr(self, name) for name in EvaluationSettings.model_fields})


class Aggregation(BaseModel):
    """How sums come about.

    Attributes:
        aggregator: "secagg": by secure aggregation, the server sees sums over nodes and nothing else; "sealed":
            encrypted to the server, which sees every node's reply; "plain": everyone on the way sees it, too;
            "simulated": by function calls in one process that holds all data, which every other engine refuses.
        insecure: must be true beside "plain", so that no one gets there by accident.
    """

    aggregator: Literal["secagg", "sealed", "plain", "simulated"] = "secagg"
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
        exact_sums: nodes of a deployment let sums without noise out; without it they refuse. A simulation needs no
            such word, since its data lie with the researcher who runs it.
    """

    unit: Literal["none"]
    exact_sums: bool = False


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
        dense_parameters: a gradient of more values is sent in parts, the same random rows by everyone.
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


class FederationSection(RoundSettings, NodeSettings):
    """Rounds and nodes; `nodes` is how many nodes the users are spread over (Flower engines)."""

    nodes: int = Field(default=4, ge=1)
