"""Flower's messages, served by the installed component in place of Flower's own program.

Flower's own program (`flwr-clientapp`, and `flwr-agentapp` if SuperLink says so) unpacks the bundle that SuperLink
sent and runs what is in it. Here a task is taken from the SuperNode, its bundle is held against the one that the
node's folder names, and the message goes to `fedrec_client.node.flower_app`, which is installed. The bundle stays in
memory as bytes only: it is written nowhere, unpacked nowhere and imported never; its name and settings choose
nothing.

A task of another kind, or with another bundle, is refused: one line in the node's log, a fixed code and text to the
server. Out of scope: starting processes (`node_program`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Flower reports home by default; it reads these when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from logging import ERROR

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import SubStatus
from flwr.common.logger import log
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedrec.core.errors import FederationError, FedrecError, ProtocolError
from fedrec.core.refusals import FAILED, FOREIGN, REFUSED
from fedrec.wire.bundle import BUNDLE, check_bundle, read_expected
from fedrec_client.node.flower_app import app

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
Component = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Task:
    """A message that waits.

    Attributes:
        token: under which the SuperNode hands out its parts.
        kind: which of Flower's programs is meant to serve it; "flwr-clientapp" is the one for us.
    """

    token: str
    kind: str


@dataclass(frozen=True)
class Server:
    """What serves the messages of one node.

    Attributes:
        address: of the SuperNode's own API, on this machine.
        folder: of the node.
        component: the installed one.
        bundle: SHA-256 in hex of the bundle that belongs to it.
    """

    address: str
    folder: Path
    component: Component = app
    bundle: str = BUNDLE

    def serve(self, task: Task) -> None:
        """Answer the message of a task; meant to be the only one in its process.

        Raises:
            Exception: the message could not be fetched or the answer not be handed over; the SuperNode itself
                answers when this process has been silent for about a minute.
        """
        client = _client(self.address, RuntimeTokenHttpInterceptor(task.token), retry=True)
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        try:
            message, context, _, bundle = pull_task_input(client)
            reply = self._evaluate_and_answer(task.kind, bundle.content, message, context)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
        finally:
            if heartbeat.is_running:
                heartbeat.stop()
            client.close()

    def _evaluate_and_answer(self, kind: str, bundle: bytes, message: Message, context: Context) -> Message:
        try:
            self.admit(kind, bundle)
        except FedrecError as error:
            # One line: what was sent is named by its digest alone.
            log(ERROR, "refused a message: %s; nothing of it was run", error)
            return Message(Error(REFUSED, FOREIGN), reply_to=message)
        return self._answer(message, context)

    def admit(self, kind: str, bundle: bytes) -> None:
        """Evaluate a task by its kind and its bundle, before its message is read.

        Raises:
            FedrecError: it is not for the installed component.
        """
        if kind != TaskType.CLIENT_APP:
            raise ProtocolError(f"a task for {kind}: expected {TaskType.CLIENT_APP.value}")
        check_bundle(bundle, read_expected(self.folder, self.bundle))

    def _answer(self, message: Message, context: Context) -> Message:
        try:
            return self.component(message, context)
        except Exception as error:
            # The text of an unexpected error may quote a user's data: it stays here.
            log(ERROR, "the node failed", exc_info=error)
            return Message(Error(REFUSED, FAILED), reply_to=message)


class Tasks:
    """The messages that wait at a SuperNode.

    Args:
        address: of the SuperNode's own API, on this machine.
        secret: shared with the SuperNode, which hands tasks to no other program.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        proof = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
        self._client = _client(address, proof, retry=False)
        # All kinds, so that one which is not for us is refused instead of waiting for ever.
        self._request = AcquireTaskRequest(supported_task_types=[kind.value for kind in TaskType])

    def take(self) -> Task | None:
        """The one that has waited longest; None while there is none, or no SuperNode yet.

        Raises:
            FederationError: the SuperNode answers with a refusal.
        """
        try:
            answer = self._client.AcquireTask(self._request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code >= 500:
                return None
            raise FederationError(
                f"the SuperNode at {self._address} hands out no tasks (status {error.response.status_code}): "
                "is that port another program's?"
            ) from error
        except httpx.TransportError:
            return None
        return Task(answer.token, answer.task.type) if answer.token else None

    def close(self) -> None:
        """Leave the SuperNode."""
        self._client.close()


def _client(address: str, proof: ProtobufClientInterceptor, *, retry: bool) -> RuntimeHttpClient:
    # Loopback: Flower's certificate options are for who serves tasks from another host.
    return RuntimeHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), proof],
        retry_invoker=make_simple_http_retry_invoker() if retry else None,
    )
