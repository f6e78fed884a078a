"""What can be laid around a model that is trained by gradients: personal parts, and control variates.

Settings alone; `personal` and `scaffold` say what they do.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.neural.device_optimizer import DeviceOptimizer


class Personal(BaseModel):
    """How far a model is a user's own; see `fedrec.recommenders.wrappers.personal`.

    Attributes:
        level: "fedper", "fedrep", "fedrecon" or "mixed".
        parameters: dense parameters of the model that stay on the device beside the head.
        steps: passes of the personal part in front of the shared part's (fedrep, fedrecon).
        device: the optimiser of the personal part where it learns alone. Where it learns jointly ("fedper") the
            model's own optimiser moves it, with this learning rate.
        evaluated: latest events on which the weight of the personal part is chosen (mixed).
        weights: among which it is chosen, rising from 0 to 1 at most (mixed).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["fedper", "fedrep", "fedrecon", "mixed"]
    parameters: tuple[str, ...] = ()
    steps: int = Field(default=5, ge=1)
    device: DeviceOptimizer = DeviceOptimizer(learning_rate=0.1)
    evaluated: int = Field(default=3, ge=1)
    weights: tuple[float, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.weights) != sorted({*self.weights}) or not 0 <= self.weights[0] <= self.weights[-1] <= 1:
            raise ValueError(f"weights {self.weights}: expected rising numbers from 0 to 1")
        return self


class Scaffold(BaseModel):
    """Control variates; see `fedrec.recommenders.wrappers.scaffold`.

    Attributes:
        items: I of the catalogue: every user keeps a control variate for each row.
        users: N of the population: the server's control variate is the mean of theirs.
        byte_limit: the most bytes that a user may have to keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=1)
    users: int = Field(ge=1)
    byte_limit: int = Field(default=4_000_000, ge=0)
