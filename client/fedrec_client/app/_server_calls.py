"""The calls that a client makes to its service, when the app makes them: check-in, a newer model, counters, training.

A call says nothing of who calls: no token, no id. Out of scope: the carrier (`transport`), what is checked of a new
model (`model_updates`), how training is carried out (`training`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fedrec import __version__
from fedrec.core.errors import DataError, ServiceError
from fedrec.core.extras import needs
from fedrec_client.app import _counter_reports as counter_reports
from fedrec_client.app._client_state import ClientState
from fedrec_client.terms.results import ModelInfo, TrainingReport
from fedrec_client.training import enrolments
from fedrec_client.updates.transport import CheckIn, CheckInAnswer, Transport


def connect(server: str | Transport | None, connection: dict[str, Any]) -> Transport | None:
    """The transport to a server, which is not spoken to yet; see `Client.open`.

    Raises:
        DataError: details of a connection without an address.
    """
    if isinstance(server, str) and "://" in server:
        with needs("Client.open(server=...)"):
            from fedrec_client.updates.https_files import HttpsFiles

            return HttpsFiles(server, **connection)
    if isinstance(server, str):
        with needs("Client.open(server=...)"):
            from fedrec_client.updates.grpc_transport import GrpcTransport

            return GrpcTransport(server, **connection)
    if connection:
        raise DataError(f"{', '.join(connection)}: only for a server given as text")
    return server


def update(state: ClientState, transport: Transport) -> ModelInfo | None:
    """See `Client.check_for_update`."""
    _check_in(state, transport, trains=False)
    _say_goodbyes(state, transport)
    info = state.models.update(transport)
    counter_reports.send(state, transport)
    return info


def train(
    state: ClientState,
    transport: Transport,
    deadline_seconds: float,
    stopped: Callable[[], bool],
    enrolment_token: str = "",
) -> TrainingReport:
    """See `Client.train_if_eligible`."""
    from fedrec_client.training.session import Session

    _say_goodbyes(state, transport)
    return Session(
        store=state.store,
        transport=transport,
        platform=state.setup.platform,
        policy=state.setup.policy,
        population=state.setup.population,
        served=state.served(),
        profile=state.profile,
        check_in=lambda: _check_in(state, transport, trains=True),
        verified_task=lambda campaign, task: state.models.verified_task(transport, campaign, task),
        now=state.models.now,
        stopped=stopped,
        enrolment_token=enrolment_token,
        lock=state.lock,
    ).run(deadline_seconds)


def _check_in(state: ClientState, transport: Transport, *, trains: bool) -> CheckInAnswer:
    return transport.check_in(CheckIn(state.setup.population, __version__, state.version, trains))


def _say_goodbyes(state: ClientState, transport: Transport) -> None:
    """Tell the service of campaigns that this device left while it could not be told."""
    for campaign, public, signature in enrolments.goodbyes(state.store):
        with suppress(ServiceError):  # said again at the next call
            transport.leave(campaign, public, signature)
            enrolments.forget_goodbye(state.store, campaign)
