"""Flower on the node's side: the only module here that imports flwr.

A message becomes a request, the node answers it, the reply becomes a message. The truth about a node lies in its
folder: Ray hands a message to any of its processes, a SuperNode starts a process per message, and Flower's own
node state is gone after a restart. Nodes are kept open in the process only to save time.

Out of scope: what a node does with a request.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

# Flower reports home by default; it reads these when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from logging import ERROR

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from fedrec.errors import FedrecError, ProtocolError, RunError
from fedrec.learning.protocol import Reply, Request
from fedrec.wire.messages import decode, encode
from fedrec_client.node import Node, open_node

#: Flower's own codes end at 8; ours say that the node refused the request (with a reason) or has a bug.
REFUSED = 1001
BROKEN = 1002
OPEN_NODES = 64

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
    """The node's answer, or an error message; nothing but our own one-line errors leaves the node in words."""
    try:
        request = parse_records(message.content)
        reply = _open(node_folder(context)).handle(request)
        return Message(make_records(reply), reply_to=message)
    except FedrecError as error:
        return Message(Error(REFUSED, f"{type(error).__name__}: {error}"), reply_to=message)
    except Exception as error:
        # The text of an unexpected error may quote somebody's data: it stays in the node's log.
        log(ERROR, "the node failed", exc_info=error)
        return Message(
            Error(BROKEN, f"the node failed ({type(error).__name__}); see its log"), reply_to=message
        )


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
        raise RunError("the node has no folder: start it with node-dir=... in --node-config")
    return Path(str(run_dir)) / "nodes" / str(part)


@lru_cache(maxsize=OPEN_NODES)
def _open(folder: Path) -> Node:
    return open_node(folder)


def parse_records(content: RecordDict) -> Request:
    """The request in a message; local state is always written, because the next round is another process's.

    Raises:
        ProtocolError: the records are not those of a request.
    """
    arrays, header = content.get("arrays"), content.get("header")
    if not isinstance(arrays, ArrayRecord) or not isinstance(header, ConfigRecord) or len(content) != 2:
        raise ProtocolError(f"request has records {sorted(content)!r:.200}: expected 'arrays' and 'header'")
    request = decode({name: array.numpy() for name, array in arrays.items()}, dict(header), Request)
    return replace(request, meta=request.meta | {"persist": True})


def make_records(reply: Reply) -> RecordDict:
    """The records of a reply."""
    arrays, header = encode(reply)
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(values) for name, values in arrays.items()}),
            "header": ConfigRecord(dict(header)),
        }
    )
