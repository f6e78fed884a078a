"""Steps on the device: how a user's own copy of the model moves during one round.

SGD; momentum (Polyak 1964); AdaGrad (Duchi et al. 2011, JMLR); RMSProp (Tieleman and Hinton 2012); Adam (Kingma and
Ba 2015, ICLR). Their moments live for one round only: nothing but the change of the model outlives it, so no device
has to store them. FedProx (Li et al. 2020, MLSys) pulls every shared parameter back to where the round began.

Letters: K users, every tensor [K, ...]; what users do not share is never mixed.
Out of scope: which gradients (`batched`), what the server does with the sum (`server_optimizer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from fedrec.neural.learning_rates import Schedule

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]


class DeviceOptimizer(BaseModel):
    """Configuration and step of the optimiser on the device.

    Attributes:
        name: which rule.
        learning_rate: η of shared parameters.
        local_learning_rate: η of what stays on the device; None: the same.
        momentum: of "momentum", and β1 of "adam".
        second_moment: decay of squares ("rmsprop", and β2 of "adam").
        epsilon: keeps steps of coordinates with tiny gradients small.
        proximal: μ of FedProx; 0: none.
        schedule: of both learning rates, over the rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "momentum", "adagrad", "rmsprop", "adam"] = "sgd"
    learning_rate: float = Field(default=1.0, gt=0)
    local_learning_rate: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    second_moment: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    proximal: float = Field(default=0.0, ge=0)
    schedule: Schedule = Schedule()

    def at(self, round_: int) -> Self:
        """The rule of one round, with the learning rates that its schedule says."""
        if self.schedule.is_flat:
            return self
        factor, own = self.schedule.factor(round_), self.local_learning_rate
        rates = {
            "learning_rate": self.learning_rate * factor,
            "local_learning_rate": None if own is None else own * factor,
        }
        return self.model_copy(update=rates | {"schedule": Schedule()})

    def rate(self, *, shared: bool) -> float:
        """η of a shared or a personal parameter."""
        own = self.local_learning_rate
        return self.learning_rate if shared or own is None else own


class Stepper:
    """The moving part: moments of one round, one per parameter and user."""

    def __init__(self, rule: DeviceOptimizer, shared: frozenset[str]) -> None:
        self._rule, self._shared = rule, shared
        self._first: Tensors = {}
        self._second: Tensors = {}
        self._time = 0

    def step(self, delta: Tensors, gradients: Tensors, active: Tensor | None = None) -> None:
        """Move `delta`, the change since the round began, by one step, in place.

        Args:
            delta: [K, ...] per parameter; what is not there yet has not moved.
            gradients: [K, ...] per parameter; they may be overwritten.
            active: [K] 1 for users who have a minibatch in this step; None: all. The others stay where they are.
        """
        self._time += 1
        for name, gradient in gradients.items():
            shared, before = name in self._shared, delta.get(name)
            if self._rule.proximal and shared and before is not None:
                gradient = gradient + self._rule.proximal * before
            change = self._direction(name, gradient)
            if active is not None:
                change = change * active.view(-1, *[1] * (change.dim() - 1))
            rate = self._rule.rate(shared=shared)
            if before is not None:
                before.sub_(change, alpha=rate)
            elif self._rule.name == "sgd":
                # The gradient of a whole catalogue is large: nothing else is made of its size.
                delta[name] = change.mul_(-rate)
            else:
                delta[name] = change * -rate

    def _direction(self, name: str, g: Tensor) -> Tensor:
        rule = self._rule
        if rule.name == "sgd":
            return g
        if rule.name == "momentum":
            self._first[name] = self._first[name] * rule.momentum + g if name in self._first else g
            return self._first[name]
        if rule.name == "adagrad":
            self._second[name] = self._second[name] + g.square() if name in self._second else g.square()
            return g / (self._second[name].sqrt() + rule.epsilon)
        share = 1.0 - rule.second_moment
        before = self._second.get(name)
        square = g.square() * share
        self._second[name] = square if before is None else before * rule.second_moment + square
        # Without the correction the first steps of a round, often the only ones, would be far too long.
        spread = (self._second[name] / (1.0 - rule.second_moment**self._time)).sqrt() + rule.epsilon
        if rule.name == "rmsprop":
            return g / spread
        mean = g * (1.0 - rule.momentum)
        self._first[name] = self._first[name] * rule.momentum + mean if name in self._first else mean
        return self._first[name] / (1.0 - rule.momentum**self._time) / spread
