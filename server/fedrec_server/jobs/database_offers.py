"""Offers in the database of the device service: any front end hands them out, and cohorts pass through it.

Out of scope: answering devices (`fedrec_server.devices`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from fedrec.core.errors import ServiceError
from fedrec.core.messages import Exchange
from fedrec_server.devices.exchange import DeviceExchange, RetryAfter
from fedrec_server.devices.state import jobs
from fedrec_server.devices.state.database import State
from fedrec_server.jobs.offers import Offer
from fedrec_server.rounds.cohorts import Cohorts, Patience


class DatabaseOffers:
    """`Offers`; see the module's text.

    Args:
        state: the database.
        retry_after: for devices whose cohort is over; None: the usual.
    """

    def __init__(self, state: State, retry_after: RetryAfter | None = None) -> None:
        self._state, self._retry_after = state, retry_after

    def make(self, offer: Offer) -> None:
        """See `Offers`."""
        with self._writing() as connection:
            if jobs.find(connection, offer.id) is not None:
                jobs.set_state(connection, offer.id, jobs.RUNNING)
                return
            jobs.add(
                connection,
                jobs.JobRow(
                    id=offer.id,
                    population=offer.population,
                    document=offer.document,
                    target=offer.target,
                    least=offer.least,
                    most=offer.most,
                    cycle=offer.cycle,
                ),
            )

    def end(self, offer: str, state: str) -> None:
        """See `Offers`."""
        with self._writing() as connection:
            row = jobs.find(connection, offer)
            if row is not None and row.state != state:
                jobs.set_state(connection, offer, state)

    @contextmanager
    def open(
        self, offer: Offer, stop: Callable[[], bool], patience: Patience
    ) -> Iterator[tuple[Exchange, Cohorts]]:
        """See `Offers`."""
        with _reachable():
            exchange = DeviceExchange(self._state, offer.id, self._retry_after, patience)
            try:
                yield exchange, exchange
            finally:
                exchange.end_all("aborted" if stop() else "done")

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _reachable(), self._state.write() as connection:
            yield connection


@contextmanager
def _reachable() -> Iterator[None]:
    """Raises ServiceError where the database cannot be used now."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise ServiceError(f"the database cannot be used ({reason}): is it running, with room?") from error
