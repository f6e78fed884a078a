"""The calls that a client makes to its services, when the app makes them: check-in, updates, counters, training.

A call says nothing of who calls: no id, and a token only where the operator asks for one. Out of scope: the carriers
(`transport`, `device_service`), what is checked of a new model (`model_updates`), how training is carried out
(`training`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedrec import __version__
from fedrec.core.errors import DataError
from fedrec.core.extras import needs
from fedrec_client.app import _counter_reports as counter_reports
from fedrec_client.app._client_state import ClientState
from fedrec_client.terms.results import ModelInfo, TrainingReport
from fedrec_client.updates.transport import CheckIn, Transport

if TYPE_CHECKING:  # loaded when a session begins
    from fedrec_client.training.device_service import DeviceService


def check_connection(connection: dict[str, Any], *servers: object) -> None:
    """Raises DataError for details of a connection without an address."""
    if connection and not any(isinstance(server, str) for server in servers):
        raise DataError(f"{', '.join(connection)}: only for a server given as text")


def connect(server: str | Transport | None, connection: dict[str, Any]) -> Transport | None:
    """The transport to a server, which is not spoken to yet; see `Client.open`."""
    if isinstance(server, str) and "://" in server:
        with needs("Client.open(server=...)"):
            from fedrec_client.updates.https_files import HttpsFiles

            return HttpsFiles(server, **connection)
    if isinstance(server, str):
        with needs("Client.open(server=...)"):
            from fedrec_client.updates.grpc_transport import GrpcTransport

            return GrpcTransport(server, **connection)
    return server


def connect_training(server: str | DeviceService | None, connection: dict[str, Any]) -> DeviceService | None:
    """The connection to a device service, which is not spoken to yet; see `Client.open`."""
    if not isinstance(server, str):
        return server
    with needs("Client.open(training_server=...)"):
        from fedrec_client.training.grpc_devices import GrpcDeviceService

        return GrpcDeviceService(server, **connection)


def update(state: ClientState, transport: Transport) -> ModelInfo | None:
    """See `Client.check_for_update`."""
    transport.check_in(CheckIn(state.setup.population, __version__, state.version))
    info = state.models.update(transport)
    counter_reports.send(state, transport)
    return info


def train(
    state: ClientState,
    transport: Transport,
    service: DeviceService,
    deadline_seconds: float,
    stopped: Callable[[], bool],
    *,
    token: str = "",
    on_step: Callable[[str], None] | None = None,
) -> TrainingReport:
    """See `Client.train_if_eligible`."""
    from fedrec_client.training.session import Admission, Session

    return Session(
        store=state.store,
        service=service,
        platform=state.setup.platform,
        policy=state.setup.policy,
        population=state.setup.population,
        served=state.served(),
        profile=state.profile,
        verified_task=lambda job, task: state.models.verified_task(transport, job, task),
        now=state.models.now,
        stopped=stopped,
        on_step=on_step or (lambda step: None),
        admission=Admission("token", token.encode()) if token else Admission(),
        lock=state.lock,
    ).run(deadline_seconds)
