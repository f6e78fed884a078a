"""Learning rates that change over the rounds: linear warm-up, then nothing, or a linear, cosine or exponential decay.

The same factor multiplies the server's rate or the device's. It is a function of the round alone, so a resumed run
and every device agree on it. Cosine: Loshchilov and Hutter 2017 (ICLR), without restarts.
"""

from __future__ import annotations

from math import cos, pi
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Schedule(BaseModel):
    """What a learning rate is multiplied by.

    Attributes:
        kind: the form of the decay.
        warm_up: rounds over which the factor rises to 1; 0 or 1: it begins there.
        horizon: the round at which the factor has fallen to `floor`, where it stays.
        floor: the last factor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    warm_up: int = Field(default=0, ge=0)
    horizon: int = Field(default=1000, ge=2)
    floor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.horizon <= self.warm_up and self.kind != "constant":
            raise ValueError(
                f"horizon {self.horizon} lies within the warm-up of {self.warm_up} rounds: set it higher"
            )
        if self.kind == "exponential" and self.floor == 0:
            raise ValueError(
                "an exponential decay never reaches a floor of 0: set floor above it, such as 0.01"
            )
        return self

    @property
    def is_flat(self) -> bool:
        """Whether the factor is always 1."""
        return self.kind == "constant" and self.warm_up <= 1

    def factor(self, round_: int) -> float:
        """The factor of a round, counted from 1."""
        top = max(self.warm_up, 1)
        if round_ < top:
            return round_ / top
        passed = min(1.0, (round_ - top) / max(self.horizon - top, 1))
        match self.kind:
            case "linear":
                return 1.0 - (1.0 - self.floor) * passed
            case "cosine":
                return self.floor + (1.0 - self.floor) * (1.0 + cos(pi * passed)) / 2.0
            case "exponential":
                return float(self.floor**passed)
        return 1.0
