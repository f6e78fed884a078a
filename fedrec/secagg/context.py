"""The context of one attempt: what every key, signature and ciphertext of it is bound to.

A message made for one run, round, attempt, model or set of terms is worth nothing in another: with a different
context the same bytes give other keys and a signature that fails. Binding the model stops a server that hands
different models to different devices so as to see one device's update in the sum (Pasquini, Francati and Ateniese
2022, arXiv 2111.07380), or that names other rows to one of them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason

MAX_LENGTH = 1 << 28


@dataclass(frozen=True)
class Context:
    """One attempt at one sum.

    Attributes:
        terms: digest of the terms, in hex.
        kind: what is summed, for example "train" or "evaluate".
        phase, round: of the run.
        attempt: rises with every attempt of a run, whatever its round.
        model: digest of the question: the model that devices compute with and what else they are told, in hex.
        length: m, number of summed residues.
    """

    terms: str
    kind: str
    phase: str
    round: int
    attempt: int
    model: str
    length: int

    def __post_init__(self) -> None:
        if not 0 < self.length <= MAX_LENGTH or self.attempt < 1 or self.round < 0:
            raise AggregationRefused(
                f"attempt {self.attempt} of round {self.round} for {self.length} values: expected an attempt from 1, "
                f"a round from 0 and up to {MAX_LENGTH} values",
                Reason.CONTEXT,
            )

    @cached_property
    def digest(self) -> bytes:
        """[32] SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()

    def bind(self, label: str, *parts: bytes) -> bytes:
        """[32] a digest of a label and parts of known order, each with its length, under this context."""
        digest = hashlib.sha256(self.digest)
        for part in (label.encode(), *parts):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()
