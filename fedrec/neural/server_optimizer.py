"""What the server does with the mean of the users' deltas: FedAvg, FedAvgM, FedAdagrad, FedAdam or FedYogi.

Reddi et al. 2021, "Adaptive federated optimization" (ICLR), algorithm 2 (FedAvgM as in Hsu et al. 2019): the
mean delta plays the part of a negative gradient. Where second moments fade (Adam, Yogi), moments are corrected for
having begun at zero, as in Kingma and Ba 2015. The moments are state of the server and are never broadcast.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fedrec.core.updates import Floats, State
from fedrec.neural.learning_rates import Schedule


class ServerOptimizer(BaseModel):
    """Configuration and step of the server's optimiser.

    Attributes:
        name: "sgd" is FedAvg (with learning_rate 1 the plain mean), "momentum" FedAvgM, the others FedAdagrad,
            FedAdam and FedYogi.
        learning_rate: η of the server.
        momentum: β of FedAvgM, β1 of the others; FedAdagrad is usually run with 0.
        second_moment: β2 of FedAdam and FedYogi.
        epsilon: τ, keeps steps of rarely touched coordinates small.
        schedule: of the learning rate, over the steps that the server has made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "momentum", "adagrad", "adam", "yogi"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    second_moment: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    schedule: Schedule = Schedule()

    def init(self, shared: State) -> State:
        """Zero moments for every shared array, and the step count."""
        if self.name == "sgd":
            return {} if self.schedule.is_flat else {"step": np.zeros(1, dtype=np.int64)}
        names = ("m",) if self.name == "momentum" else ("m", "v")
        moments = {f"{k}/{name}": np.zeros_like(a) for k in names for name, a in shared.items()}
        return moments | {"step": np.zeros(1, dtype=np.int64)}

    def rate(self, server: State) -> float:
        """η of the step that led to this state of the server."""
        if self.schedule.is_flat:
            return self.learning_rate
        return self.learning_rate * self.schedule.factor(int(server["step"][0]))

    def apply(self, shared: State, server: State, mean_delta: dict[str, Floats]) -> tuple[State, State]:
        """New shared and server state after one mean delta (one array per shared array)."""
        after = {"step": server["step"] + 1} if "step" in server else {}
        rate = self.rate(after)
        new: State = {}
        for name, value in shared.items():
            step, moments = self._step(name, mean_delta[name], server, after, rate)
            after |= moments
            new[name] = (value + step).astype(value.dtype)
        return new, after

    def _step(
        self, name: str, delta: Floats, server: State, after: State, rate: float
    ) -> tuple[Floats, State]:
        """The step of one array, and its new moments."""
        if self.name == "sgd":
            return rate * delta, {}
        mass = 1.0 if self.name == "momentum" else 1.0 - self.momentum
        m = self.momentum * server[f"m/{name}"] + mass * delta
        moments = {f"m/{name}": m.astype(np.float32)}
        if self.name == "momentum":
            return rate * m, moments
        v = self._second(server[f"v/{name}"], np.square(delta))
        t = int(after["step"][0])
        begun = 1.0 if self.name == "adagrad" else 1.0 - self.second_moment**t
        unbiased = m / (1.0 - self.momentum**t)
        step = rate * unbiased / (np.sqrt(v / begun) + self.epsilon)
        return step, moments | {f"v/{name}": v.astype(np.float32)}

    def _second(self, v: Floats, square: Floats) -> Floats:
        """The second moment after one more squared delta."""
        if self.name == "adagrad":
            return v + square
        if self.name == "adam":
            return self.second_moment * v + (1.0 - self.second_moment) * square
        # Yogi moves towards the square by its size, whatever the distance, so v never falls fast.
        return v - (1.0 - self.second_moment) * square * np.sign(v - square)
