"""The sections of a task, each a frozen model that knows what fits within itself.

Out of scope: what goes with what in other sections (`specification`), and carrying anything out.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrec.core.errors import ConfigError
from fedrec.privacy.settings import PrivacySettings
from fedrec.rounds.settings import NodeSettings, RoundSettings


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
