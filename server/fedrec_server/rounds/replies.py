"""Checking what nodes answer: a reply that does not follow the protocol costs its own update, not the round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.secagg.terms import SecaggTerms, Terms


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
