"""The collector of a task's terms. Out of scope: what collectors do."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from fedrec.core.errors import AggregationRefused, ProtocolError, RunError
from fedrec.core.messages import Exchange, Reply
from fedrec.secagg.sealed import open_, sealed_context, unpack
from fedrec.secagg.terms import SealedTerms, SecaggTerms
from fedrec_server.rounds._collectors import Collector, IntegerCollector, OpenCollector
from fedrec_server.rounds._secure_collector import SecureCollector
from fedrec_server.rounds.task import SEALED_KEY, Task


def make_collector(task: Task, exchange: Exchange, folder: Path, *, integers: bool = False) -> Collector:
    """See the module's text.

    Args:
        task: of the run.
        exchange: to the nodes.
        folder: the coordinator's.
        integers: nodes hand in the integers of secure aggregation without masks (in one process only).
    """
    rounds, terms = task.rounds, task.aggregation
    if isinstance(terms, SealedTerms):
        return OpenCollector(exchange, rounds.deadline_seconds, _Opener(terms, folder))
    if not isinstance(terms, SecaggTerms):
        return OpenCollector(exchange, rounds.deadline_seconds)
    if integers:
        return IntegerCollector(exchange, rounds.deadline_seconds, terms)
    return SecureCollector(
        exchange,
        terms,
        folder,
        deadline_seconds=rounds.deadline_seconds,
        stage_seconds=min(rounds.stage_seconds, rounds.deadline_seconds),
        min_nodes=rounds.min_nodes,
        min_reply_fraction=rounds.min_reply_fraction,
        private=task.privacy is not None,
    )


class _Opener:
    """Opens what nodes sealed to this coordinator; the key goes when the run is finished."""

    def __init__(self, terms: SealedTerms, folder: Path) -> None:
        self._run = terms.run
        self._path = folder / SEALED_KEY

    @cached_property
    def _private(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be read ({error.strerror}): without it no reply can be opened"
            ) from error

    def __call__(self, reply: Reply, node: str) -> Reply:
        """The reply as the node made it."""
        if set(reply.arrays) != {"sealed"} or reply.arrays["sealed"].dtype.name != "uint8":
            raise ProtocolError(f"reply has arrays {sorted(reply.arrays)}: expected one sealed box")
        bound = sealed_context(self._run, reply.phase, reply.round, reply.kind, node)
        try:
            arrays, meta = unpack(open_(self._private, reply.arrays["sealed"].tobytes(), bound))
        except AggregationRefused as error:
            raise ProtocolError(str(error)) from error
        return replace(reply, arrays=arrays, meta=meta)
