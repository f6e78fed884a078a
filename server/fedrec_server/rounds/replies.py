"""Checking what nodes answer: a reply that does not follow the protocol costs its own update, not the round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.updates import NUMBERS, Layout, UpdateSum
from fedrec.rounds.compression import Quantised
from fedrec.secagg.terms import SecaggTerms, Terms

#: Room for float32 rounding of a sum whose norm is at the bound.
NORM_SLACK = 1.0 + 1e-4


def check_envelope(request: Request, reply: Reply) -> None:
    """Kind, round and phase of a reply must be those of its request.

    Raises:
        ProtocolError: they are not.
    """
    for name in ("kind", "round", "phase"):
        given, expected = getattr(reply, name), getattr(request, name)
        if given != expected:
            raise ProtocolError(f"reply has {name} {given!r}: expected {expected!r}")


@dataclass(frozen=True)
class Host:
    """A node that said hello.

    Attributes:
        users: how many users it hosts.
        name: by which it knows itself.
        place: in the roster of secure aggregation, or None.
    """

    users: int
    name: str
    place: int | None = None


def read_hello(node: str, reply: Reply, max_users: int, terms: Terms) -> Host:
    """Who says hello.

    Raises:
        ProtocolError: an impossible number of users, or no place in the roster of the run.
    """
    users, name, place = (reply.meta.get(key) for key in ("users", "node", "place"))
    if not isinstance(users, int) or not 0 <= users <= max_users:
        raise ProtocolError(f"node {node} claims {users!r} users: expected 0 to {max_users}")
    if not isinstance(name, str):
        raise ProtocolError(f"node {node} has no name: run one version of fedrec")
    if not isinstance(terms, SecaggTerms) or place is None:
        return Host(users, name)
    members = terms.roster.members
    if type(place) is not int or not 0 <= place < len(members) or members[place].users != users:
        raise ProtocolError(
            f"node {node} claims place {place!r} of the roster with {users} users: enrol it again"
        )
    return Host(users, name, place)


def read_update(
    reply: Reply,
    layout: Layout,
    hosted_users: int,
    clip_norm: float | None,
    *,
    bits: int | None = None,
    summed: bool = False,
) -> UpdateSum:
    """The sum in a train reply.

    Args:
        reply: of one node, or the sum that secure aggregation gave.
        layout: of the round.
        hosted_users: most users that can be behind it.
        clip_norm: C, or None.
        bits: in which a node that hosts one user may send values; None: none but floats.
        summed: the devices saw to the bound; rounding can take their sum past it.

    Raises:
        ProtocolError: keys, shape, type, finiteness, the number of users or the norm are not as declared.
    """
    if bits is not None and set(reply.arrays) == {"levels", "scale"}:
        quantised = Quantised.unpack(reply.arrays, layout.size, bits)
        reply = replace(reply, arrays={"update": quantised.values().astype(np.float32)})
    if set(reply.arrays) != {"update"}:
        raise ProtocolError(f"reply has arrays {sorted(reply.arrays)}: expected only 'update'")
    if set(reply.meta) != set(NUMBERS):
        raise ProtocolError(f"reply has fields {sorted(reply.meta)}: expected {sorted(NUMBERS)}")
    update = reply.arrays["update"]
    if summed:
        update = update.astype(np.float32)
    if update.dtype != np.float32 or update.shape != (layout.size,):
        raise ProtocolError(f"update is {update.dtype}{update.shape}: expected float32({layout.size},)")
    numbers = {name: reply.meta[name] for name in NUMBERS}
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers.values()):
        raise ProtocolError("a number of the reply is not finite: expected finite numbers")
    users = float(numbers["users"])
    if users != int(users) or not 0 <= users <= hosted_users:
        raise ProtocolError(f"reply speaks for {users:g} users: the node hosts {hosted_users}")
    counts = [float(numbers[name]) for name in ("clipped", "zeroed")]
    if not all(0 <= count <= users for count in counts) or float(numbers["examples"]) < 0:
        raise ProtocolError(
            "reply has impossible counts: expected 0 <= clipped, zeroed <= users and examples >= 0"
        )
    norm = float(np.linalg.norm(update.astype(np.float64)))
    if not math.isfinite(norm):
        raise ProtocolError("update is not finite: expected finite numbers")
    if clip_norm is not None and not summed and norm > users * clip_norm * NORM_SLACK:
        raise ProtocolError(
            f"update of norm {norm:.4g} for {users:g} users: expected at most {users * clip_norm:.4g}"
        )
    blocks = {name: values.astype(np.float64) for name, values in layout.unflatten(update).items()}
    return UpdateSum(
        blocks,
        int(users),
        float(numbers["loss"]),
        float(numbers["examples"]),
        int(numbers["clipped"]),
        float(numbers["norm"]),
        int(numbers["zeroed"]),
    )


T = TypeVar("T")


def sift(
    requests: Mapping[str, Request],
    answers: Mapping[str, Reply | Failure],
    read: Callable[[str, Reply], T],
) -> tuple[dict[str, T], dict[str, str]]:
    """Readable answers by node (in the order of the node ids), and the reason for each of the others."""
    good: dict[str, T] = {}
    bad: dict[str, str] = {}
    for node in sorted(requests):
        answer = answers.get(node, Failure("no answer"))
        try:
            if isinstance(answer, Failure):
                raise ProtocolError(answer.reason)
            check_envelope(requests[node], answer)
            good[node] = read(node, answer)
        except ProtocolError as error:
            bad[node] = str(error)
    return good, bad
