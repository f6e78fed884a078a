"""The collector of a task's terms. Out of scope: what collectors do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from fedrec.core.errors import AggregationRefused, ProtocolError, RunError
from fedrec.core.messages import Exchange, Reply
from fedrec.secagg.sealed import open_, sealed_context, unpack
from fedrec.secagg.terms import CohortTerms, SealedTerms, SecaggTerms
from fedrec_server.rounds._attempt import Seconds
from fedrec_server.rounds._cohort_collector import CohortCollector
from fedrec_server.rounds._collectors import Collector, IntegerCollector, Members, OpenCollector
from fedrec_server.rounds._secure_collector import SecureCollector
from fedrec_server.rounds.cohorts import Devices
from fedrec_server.rounds.task import SEALED_KEY, Task


def make_collector(
    task: Task,
    exchange: Exchange,
    members: Members,
    folder: Path,
    *,
    integers: bool = False,
    devices: Devices | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Collector:
    """See the module's text.

    Args:
        task: of the run.
        exchange: to the nodes.
        members: who of them is there.
        folder: the coordinator's.
        integers: nodes hand in the integers of secure aggregation without masks (in one process only).
        devices: of a job, whose cohorts are formed for each round.
        stop: asked while a cohort forms; when true, none is.

    Raises:
        RunError: the terms are those of a job, and there are no devices.
    """
    rounds, terms = task.rounds, task.aggregation
    seconds = Seconds(rounds.deadline_seconds, min(rounds.stage_seconds, rounds.deadline_seconds))
    private = task.privacy is not None
    if isinstance(terms, SealedTerms):
        return OpenCollector(exchange, members, rounds.deadline_seconds, _Opener(terms, folder))
    if not isinstance(terms, SecaggTerms | CohortTerms):
        return OpenCollector(exchange, members, rounds.deadline_seconds)
    if integers:
        return IntegerCollector(exchange, members, rounds.deadline_seconds, terms)
    if isinstance(terms, CohortTerms):
        if devices is None:
            raise RunError(
                "this run is a job, whose devices come and go: run it by its job (`fedrec-server job`)"
            )
        plan = task.privacy.plan if task.privacy is not None else None
        return CohortCollector(
            exchange, members, devices, terms, folder, seconds=seconds, plan=plan, stop=stop
        )
    return SecureCollector(
        exchange,
        members,
        terms,
        folder,
        seconds=seconds,
        min_nodes=rounds.min_nodes,
        min_reply_fraction=rounds.min_reply_fraction,
        private=private,
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
