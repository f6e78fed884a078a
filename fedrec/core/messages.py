"""The round protocol: how a coordinator talks to nodes, whatever carries the messages.

Coordinator and node know no Flower. An `Exchange` carries requests to nodes and brings the replies that came
before the deadline: in process it is a function call, in a federation it is Flower's messages.

    coordinator                                     node (hosts one or more users)
      train     (shared state, round, phase) ─────▶  clipped sum of its users' updates, numbers
      evaluate  (shared state, round, phase) ─────▶  sums of metrics over its users
      persist   (round, phase)               ─────▶  local state is on disk
      advertise, share, confirm, unmask      ─────▶  the stages of secure aggregation around train and evaluate
      hello     ()                           ─────▶  how many users it hosts, which configuration it runs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

if TYPE_CHECKING:  # a message can be read without what computes updates
    from fedrec.core.updates import State

Kind = Literal["hello", "train", "evaluate", "persist", "advertise", "share", "confirm", "unmask"]
#: "tuning" trains on the training part and is evaluated on the validation part; "refit" trains on both and is
#: evaluated once on the test part.
Phase = Literal["tuning", "refit"]
Scalar = str | int | float | bool


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of one node."""

    kind: Kind
    round: int
    phase: Phase = "tuning"
    arrays: State = field(default_factory=dict)
    meta: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a node answers; nothing in it may be trusted before it is checked."""

    kind: str
    round: int
    phase: str
    arrays: State = field(default_factory=dict)
    meta: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a node gave no usable reply: it costs its own update, not the round."""

    reason: str


@dataclass(frozen=True)
class Summed:
    """Vectors that were added up where they came in.

    Attributes:
        total: [m] residues, modulo 2^bits of their type.
        nodes: whose vectors are in it.
        failures: why those of the others are not.
    """

    total: NDArray[Any]
    nodes: tuple[str, ...]
    failures: Mapping[str, Failure]


@runtime_checkable
class SummingExchange(Protocol):
    """An exchange that need not hold the vectors of a whole cohort at once."""

    def exchange_summed(
        self, requests: Mapping[str, Request], deadline_seconds: float, dtype: str, length: int
    ) -> Summed:
        """The sum of the arrays "masked" of the replies that came in time.

        Args:
            requests: by node.
            deadline_seconds: from now.
            dtype, length: of one vector; a reply with another counts as none.
        """


class Exchange(Protocol):
    """Carries requests to nodes and brings back what came in time."""

    def nodes(self) -> list[str]:
        """Ids of the nodes that can be reached now, sorted."""

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """One entry per request; a node that did not answer in time has a `Failure`."""
