"""How a node's reply leaves it: as it is, sealed to the server, or as one of many masked vectors.

A node makes its reply as if it were to be sent in the clear; the sender of its terms decides what of it can be seen.
Out of scope: making the reply (`node`), the protocol's short stages (`secure_party`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from fedrec.core.messages import Reply, Request
from fedrec.privacy.noise import NoiseSource
from fedrec.secagg.sealed import pack, seal, sealed_context
from fedrec.secagg.sums import SumFormat, label_of
from fedrec.secagg.terms import CohortTerms, SealedTerms, SecaggTerms, rules_of
from fedrec_client.node._memory import Memory
from fedrec_client.node._party import Party

#: Noise for rounding, by label.
Rounding = Callable[[str], NoiseSource]


class Sender(Protocol):
    """See the module's text."""

    def payload(self, request: Request) -> Request:
        """What is asked, without what the sender added to it."""

    def send(self, request: Request, reply: Reply, memory: Memory) -> Reply:
        """The reply as it leaves.

        Args:
            request: as it came.
            reply: as the node made it.
            memory: of the attempt.
        """


class PlainSender:
    """The server sees every reply."""

    def payload(self, request: Request) -> Request:
        """The request itself."""
        return request

    def send(self, request: Request, reply: Reply, memory: Memory) -> Reply:
        """The reply itself."""
        return reply


class SealedSender:
    """No one on the way sees a reply; the server does.

    Args:
        terms: of the run.
        node: by which the server knows this node.
    """

    def __init__(self, terms: SealedTerms, node: str) -> None:
        self._public = bytes.fromhex(terms.public)
        self._terms = terms
        self._node = node

    def payload(self, request: Request) -> Request:
        """The request itself."""
        return request

    def send(self, request: Request, reply: Reply, memory: Memory) -> Reply:
        """One array of ciphertext."""
        bound = sealed_context(self._terms.run, reply.phase, reply.round, reply.kind, self._node)
        box = seal(self._public, pack(reply.arrays, reply.meta), bound)
        return replace(reply, arrays={"sealed": np.frombuffer(box, dtype=np.uint8).copy()}, meta={})


class MaskedSender:
    """The server sees sums over many nodes.

    Args:
        party: this node in the protocol.
        rounding: gives the generator for stochastic rounding.
    """

    def __init__(self, party: Party, rounding: Rounding) -> None:
        self._party = party
        self._rounding = rounding

    def payload(self, request: Request) -> Request:
        """The request without the protocol's part."""
        return self._party.payload(request)

    def send(self, request: Request, reply: Reply, memory: Memory) -> Reply:
        """The masked vector."""
        return self._party.mask(request, memory, residues(self._party.terms, reply, self._rounding))


class IntegerSender:
    """The integers that would be masked, in the clear: for simulations in one process, which hide nothing.

    Args:
        terms: of the run.
        rounding: gives the generator for stochastic rounding.
    """

    def __init__(self, terms: SecaggTerms | CohortTerms, rounding: Rounding) -> None:
        self._terms = rules_of(terms)
        self._rounding = rounding

    def payload(self, request: Request) -> Request:
        """The request itself."""
        return request

    def send(self, request: Request, reply: Reply, memory: Memory) -> Reply:
        """The residues."""
        return replace(reply, arrays={"integers": residues(self._terms, reply, self._rounding)}, meta={})


def residues(
    terms: SecaggTerms, reply: Reply, rounding: Rounding
) -> np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]:
    """[length] what a reply adds to the sum."""
    label = label_of(reply.kind, reply.phase, reply.round)
    form = SumFormat.of(terms, label, reply.arrays, reply.meta)
    return form.encode(reply.arrays, reply.meta, rounding(label).uniform)
