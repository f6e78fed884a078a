"""Flower on the node's side: messages in, messages out.

A message becomes a request, the node answers it, the reply becomes a message. The truth about a node lies in its
folder: Ray hands a message to any of its processes, a SuperNode starts a process per message, and Flower's own
node state is gone after a restart. Only the secrets of a secure sum, which must not survive a restart, lie in that
state. Nodes are kept open in the process only to save time.

A SuperNode starts a process per message, and most stages of a secure sum touch neither model nor data: they are
served without importing what trains. Out of scope: what a node does with a request, and how a message comes here:
in a deployment through `flower_tasks`, which lets no other component near it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

# Flower reports home by default; it reads these when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.core.errors import ProtocolError, RunError
from fedrec.core.messages import Reply, Request
from fedrec.core.refusals import REFUSED, NodeRefused
from fedrec.wire.messages import decode, encode
from fedrec.wire.packed import pack, unpack
from fedrec_client.node._memory import Memory
from fedrec_client.node._party import Party, open_party
from fedrec_client.node._secure_party import STAGES
from fedrec_client.node.outgoing import emit

if TYPE_CHECKING:
    from fedrec_client.node.node import Node

OPEN_NODES = 64
#: Names of the record, and of the array in it, that hold the secrets of a secure sum between two messages.
SECRETS, SECRET = "fedrec-secrets", "bytes"

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Serve a train request."""
    return serve(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Serve an evaluate request."""
    return serve(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Serve every other request."""
    return serve(message, context)


def serve(message: Message, context: Context) -> Message:
    """The node's answer, or an error message with a code of `fedrec.core.refusals` as its only word."""
    outcome = emit(lambda: _serve(message, context))
    if isinstance(outcome, str):
        return Message(Error(REFUSED, outcome), reply_to=message)
    return Message(make_records(outcome), reply_to=message)


def _serve(message: Message, context: Context) -> Reply:
    deployed = "node-dir" in context.node_config
    request = parse_records(message.content)
    return answer(node_folder(context), request, StateMemory(context.state), deployed=deployed)


def answer(folder: Path, request: Request, memory: Memory, *, deployed: bool = True) -> Reply:
    """The reply of the node in `folder`; the stages of a secure sum do without opening the node.

    A node of a deployment lets exact sums out only if its terms say so; a simulation's data are not those of its
    users' devices.

    Raises:
        NodeRefused: the request is not served; a code is all that is said.
    """
    outcome = emit(lambda: _answer(folder, request, memory, deployed))
    if isinstance(outcome, str):
        raise NodeRefused(outcome)
    return outcome


def _answer(folder: Path, request: Request, memory: Memory, deployed: bool) -> Reply:
    if request.kind in STAGES:
        party = _open_party(folder)
        if party is not None:
            return party.handle(request, memory)
    return _open(folder, deployed).handle(request, memory=memory)


class StateMemory:
    """A `Memory` in Flower's node state, which a SuperNode and a simulation hold in their own memory.

    Flower takes over the state with which a handler returns, so what is cleared here is dropped there.

    Args:
        state: of the handler's context. An array of bytes in it is carried as it is; a field of bytes is not.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def get(self) -> bytes | None:
        """See `Memory`."""
        record = self._state.get(SECRETS)
        return bytes(record[SECRET].numpy()) if isinstance(record, ArrayRecord) else None

    def put(self, data: bytes) -> None:
        """See `Memory`."""
        self._state[SECRETS] = ArrayRecord({SECRET: Array(np.frombuffer(data, dtype=np.uint8))})

    def clear(self) -> None:
        """See `Memory`."""
        self._state.pop(SECRETS, None)


def node_folder(context: Context) -> Path:
    """Where the node's data and state lie: its own setting, or its part of the run folder in a simulation.

    Raises:
        RunError: neither is known.
    """
    own = context.node_config.get("node-dir")
    if own is not None:
        # In a deployment the coordinator has no say in which folder a node opens.
        return Path(str(own))
    run_dir, part = context.run_config.get("run-dir"), context.node_config.get("partition-id")
    if not run_dir or not isinstance(part, int):
        raise RunError("the node has no folder: start it with `fedrec-server node start`")
    return Path(str(run_dir)) / "nodes" / str(part)


@lru_cache(maxsize=OPEN_NODES)
def _open(folder: Path, deployed: bool) -> Node:
    # Importing what trains takes longer than a short stage does.
    from fedrec_client.node.node_folder import open_node

    return open_node(folder, deployed=deployed)


@lru_cache(maxsize=OPEN_NODES)
def _open_party(folder: Path) -> Party | None:
    return open_party(folder)


def parse_records(content: RecordDict) -> Request:
    """The request in a message; local state is always written, because the next round is another process's.

    Raises:
        ProtocolError: the records are not those of a request.
    """
    arrays, record = content.get("arrays"), content.get("header")
    if not isinstance(record, ConfigRecord) or not set(content) <= {"arrays", "header"}:
        raise ProtocolError(f"request has records {sorted(content)!r:.200}: expected 'arrays' and 'header'")
    header = dict(record)
    packed = header.pop("packed", None)
    if isinstance(packed, bytes) and arrays is None:
        request = decode(unpack(packed), header, Request)
    elif isinstance(arrays, ArrayRecord) and packed is None:
        request = decode({name: array.numpy() for name, array in arrays.items()}, header, Request)
    else:
        raise ProtocolError(
            "request has records of another type: expected arrays, or a header with packed ones"
        )
    return replace(request, meta=request.meta | {"persist": True})


def make_records(reply: Reply) -> RecordDict:
    """The records of a reply; Flower carries each array as an object of its own, so small ones join the header."""
    arrays, header = encode(reply)
    packed = pack(arrays)
    if packed is not None:
        return RecordDict({"header": ConfigRecord({**header, "packed": packed})})
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(values) for name, values in arrays.items()}),
            "header": ConfigRecord(dict(header)),
        }
    )
