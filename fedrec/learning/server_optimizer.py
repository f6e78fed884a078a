"""What the server does with the mean of the users' deltas: a step of SGD, momentum or Adam.

Reddi et al. 2021, "Adaptive federated optimization" (ICLR), algorithm 2 (FedAvgM as in Hsu et al. 2019): the
mean delta plays the part of a negative gradient. The moments are state of the server and are never broadcast.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fedrec.learning.updates import Floats, State


class ServerOptimizer(BaseModel):
    """Configuration and step of the server's optimiser.

    Attributes:
        name: "sgd" is FedAvg (with learning_rate 1 the plain mean), "momentum" FedAvgM, "adam" FedAdam.
        learning_rate: η of the server.
        momentum: β of FedAvgM and β1 of FedAdam.
        second_moment: β2 of FedAdam.
        epsilon: τ of FedAdam, keeps steps of rarely touched coordinates small.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "momentum", "adam"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    second_moment: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)

    def init(self, shared: State) -> State:
        """Zero moments for every shared array, and the step count."""
        if self.name == "sgd":
            return {}
        names = ("m",) if self.name == "momentum" else ("m", "v")
        moments = {f"{k}/{name}": np.zeros_like(a) for k in names for name, a in shared.items()}
        return moments | {"step": np.zeros(1, dtype=np.int64)}

    def apply(self, shared: State, server: State, mean_delta: dict[str, Floats]) -> tuple[State, State]:
        """New shared and server state after one mean delta (one array per shared array)."""
        after = {"step": server["step"] + 1} if "step" in server else {}
        new: State = {}
        for name, value in shared.items():
            step, moments = self._step(name, mean_delta[name], server, after)
            after |= moments
            new[name] = (value + step).astype(value.dtype)
        return new, after

    def _step(self, name: str, delta: Floats, server: State, after: State) -> tuple[Floats, State]:
        if self.name == "sgd":
            return self.learning_rate * delta, {}
        mass = 1.0 - self.momentum if self.name == "adam" else 1.0
        m = self.momentum * server[f"m/{name}"] + mass * delta
        if self.name == "momentum":
            return self.learning_rate * m, {f"m/{name}": m.astype(np.float32)}
        v = self.second_moment * server[f"v/{name}"] + (1.0 - self.second_moment) * np.square(delta)
        t = int(after["step"][0])
        unbiased = m / (1.0 - self.momentum**t)
        spread = np.sqrt(v / (1.0 - self.second_moment**t))
        step = self.learning_rate * unbiased / (spread + self.epsilon)
        return step, {f"m/{name}": m.astype(np.float32), f"v/{name}": v.astype(np.float32)}
