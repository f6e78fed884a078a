"""The sections that an experiment adds to a task, each a frozen model that knows what fits within itself.

Out of scope: what goes with what in other sections (`config`), and carrying anything out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fedrec.evaluation.settings import EvaluationSettings
from fedrec_server.operations.sections import Section
from fedrec_simulations.experiments.features import FeatureSettings

#: Name of data that a caller of the Python API holds.
IN_MEMORY = "memory"


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
