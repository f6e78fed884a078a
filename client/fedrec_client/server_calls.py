"""The calls that a client makes to its service, when the app makes them: check-in, a newer model, counters, training.

A call says nothing of who calls: no token, no id. Out of scope: the carrier (`transport`), what is checked of a new
model (`model_updates`), how training is carried out (`training`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fedrec import __version__
from fedrec.errors import DataError
from fedrec_client import metrics
from fedrec_client.client_state import ClientState
from fedrec_client.participation import Book
from fedrec_client.results import ModelInfo, TrainingReport
from fedrec_client.transport import CheckIn, CheckInAnswer, Transport

METRICS_DAY = "metrics"


def connect(server: str | Transport | None, connection: dict[str, Any]) -> Transport | None:
    """The transport to a server, which is not spoken to yet; see `Client.open`.

    Raises:
        DataError: details of a connection without an address.
    """
    if isinstance(server, str) and "://" in server:
        from fedrec_client.https_files import HttpsFiles

        return HttpsFiles(server, **connection)
    if isinstance(server, str):
        from fedrec_client.grpc_transport import GrpcTransport

        return GrpcTransport(server, **connection)
    if connection:
        raise DataError(f"{', '.join(connection)}: only for a server given as text")
    return server


def update(state: ClientState, transport: Transport) -> ModelInfo | None:
    """See `Client.check_for_update`."""
    _check_in(state, transport, trains=False)
    info = state.models.update(transport)
    _send_metrics(state, transport)
    return info


def train(
    state: ClientState, transport: Transport, deadline_seconds: float, stopped: Callable[[], bool]
) -> TrainingReport:
    """See `Client.train_if_eligible`."""
    from fedrec_client.training.session import Session

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
    ).run(deadline_seconds)


def _check_in(state: ClientState, transport: Transport, *, trains: bool) -> CheckInAnswer:
    return transport.check_in(CheckIn(state.setup.population, __version__, state.version, trains))


def _send_metrics(state: ClientState, transport: Transport) -> None:
    """Counters of yesterday, once, where the person has agreed."""
    today = metrics.day_of(state.setup.now())
    if not transport.takes_counters or not state.consent.metrics:
        return
    if int(state.store.get(METRICS_DAY) or b"-1") >= today:
        return
    start = (today - 1) * metrics.DAY
    events = [event for event in state.store.events(since=start) if event.time < start + metrics.DAY]
    noised = metrics.noised(metrics.counters(events))
    version = state.version
    with state.lock, state.store.transaction():
        state.store.put(METRICS_DAY, str(today).encode())
        size = len(json.dumps(noised))
        Book(state.store).note(
            "metrics", state.setup.now(), bytes=size, epsilon=metrics.EPSILON, day=today - 1
        )
    transport.send_metrics(state.setup.population, version, noised)
