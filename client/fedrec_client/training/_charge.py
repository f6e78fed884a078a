"""The charge of one session in a cohort: made once, on disk before the masked vector leaves, for the cohort's round.

Out of scope: what a participation costs (`task_evaluation`), what the store holds of it (`participations`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fedrec.core.errors import ServiceError, StoreError
from fedrec.core.messages import Reply, Request
from fedrec_client.node.node import Node
from fedrec_client.store.base import Store
from fedrec_client.terms.task_evaluation import Price
from fedrec_client.training import participations


@dataclass(frozen=True)
class Job:
    """A job whose task was verified and evaluated.

    Attributes:
        id: 32 hexadecimal digits.
        task: payload.
        price: of the next participation.
    """

    id: str
    task: Mapping[str, Any]
    price: Price


class Charge:
    """See the module's text.

    Args:
        job: that is paid for.
        store: of this device.
        lock: of the store and of what the user decides.
        now: seconds since 1970.
        stopped: whether nothing may leave any more.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        lock: AbstractContextManager[Any],
        now: Callable[[], float],
        stopped: Callable[[], bool],
    ) -> None:
        self._job, self._store, self._lock = job, store, lock
        self._now, self._stopped = now, stopped
        self._round, self._made, self._ended = 0, False, False

    def of_round(self, round_: int) -> None:
        """The round that the session's cohort is in; it is the same in all of its questions.

        Raises:
            ServiceError: this device may not take part in it.
        """
        if self._round not in (0, round_):
            raise ServiceError(f"round {round_} came after round {self._round}: one cohort has one")
        known = participations.read(self._store, self._job.id)
        if not self._made and not known.allows(round_, self._job.task.get("cycle")):
            raise ServiceError(
                f"round {round_} came after this device took part in round {known.last_round}: too early"
            )
        self._round = round_

    def __call__(self) -> None:
        """Write it; on disk when this returns.

        Raises:
            ServiceError: the user has said stop, withdrawn consent or deleted everything: nothing may leave.
            StoreError: it cannot be written: nothing may leave.
        """
        job = self._job
        plan = job.task["node"]["privacy"]["plan"]
        with self._lock:
            if self._ended or self._stopped():
                raise ServiceError("stopped")
            try:
                participations.write_charge(
                    self._store,
                    job.id,
                    self._round,
                    float(job.task["expires"]),
                    self._now(),
                    epsilon=job.price.epsilon,
                    delta=job.price.delta,
                    unit=plan["unit"],
                    trust=plan["trust"],
                    aggregator="secagg",
                    rounds=1,
                )
            except StoreError as error:
                raise StoreError(f"nothing left, because the charge cannot be kept: {error}") from error
            self._made = True

    def end(self) -> bool:
        """No charge is made any more; whether one was. Called with the lock held."""
        self._ended = True
        return self._made


class Checked:
    """A node that answers questions of one round alone, one that this device may take part in.

    Args:
        node: answers.
        charge: of the session.
    """

    def __init__(self, node: Node, charge: Charge) -> None:
        self._node, self._charge = node, charge

    def handle(self, request: Request) -> Reply:
        """The reply of the node; raises FedrecError for a round that is not this session's."""
        self._charge.of_round(request.round)
        return self._node.handle(request)
