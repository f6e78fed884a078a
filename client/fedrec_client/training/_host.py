"""The node of one session: one user, everything in this process's memory, nothing of it in any file.

Here is the one place where answers leave this process: the first release is charged before it does (`charging`), and
kind, round and bytes of every answer are written down. Secrets of secure aggregation, promises and answers die with
the process, and the identity dies with the session, so that nothing can be asked for a second time. Out of scope:
starting processes (`worker`), how a charge is made (`session`).
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrec.core.errors import PrivacyRefused, ProtocolError
from fedrec.core.interactions import Interactions
from fedrec.core.messages import Reply, Request
from fedrec.data.split import Split
from fedrec.evaluation.settings import parse_evaluation
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import parse
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import parse_terms
from fedrec.wire.messages import decode, encode
from fedrec_client.node.forward import SENT, receive, send
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.outgoing import emit
from fedrec_client.node.private_releases import PaidReleases
from fedrec_client.training._charging import Charge, is_release

log = logging.getLogger(__name__)


def make_node(wanted: Mapping[str, Any]) -> Node:
    """The node of a session.

    Args:
        wanted: node (parts of a node.json), item_ids, history (places of items, oldest first), user_key, identity.

    Raises:
        PrivacyRefused: the task has no privacy plan.
    """
    parts = wanted["node"]
    if not parts["privacy"]:
        raise PrivacyRefused("a task without a privacy plan: a device takes part under one only")
    terms = PrivacyTerms.model_validate(parts["privacy"])
    return Node(
        _split(wanted),
        parse(parts["model"]),
        NodeSettings.model_validate(parts["settings"]),
        parse_evaluation(parts["evaluation"]),
        LocalStore(None),
        privacy=terms,
        aggregation=parse_terms(parts["aggregation"]),
        identity=Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(wanted["identity"]))),
        releases=PaidReleases(terms.plan.charges),
    )


def _split(wanted: Mapping[str, Any]) -> Split:
    history = np.array(wanted["history"], dtype=np.int64)
    train = Interactions(
        np.zeros(len(history), np.int64),
        history,
        np.ones(len(history), np.float32),
        np.arange(len(history), dtype=np.int64),
        np.array(["this device"]),
        np.array(wanted["item_ids"]),
    )
    return Split(train, None, None, user_key=np.array([wanted["user_key"]], dtype=np.int64))


def serve(node: Node, listener: socket.socket, folder: Path, charge: Charge) -> None:
    """Answer until the socket is closed, one question at a time.

    Raises:
        NotCharged: the first release was not charged; nothing of it has left, and nothing more is answered.
    """
    while True:
        try:
            line, _ = listener.accept()
        except OSError:
            return
        with line:
            try:
                _answer(node, line, folder, charge)
            except (OSError, ProtocolError) as error:
                log.warning("a question was dropped: %s", error)


def _answer(node: Node, line: socket.socket, folder: Path, charge: Charge) -> None:
    header, arrays = receive(line)
    request: Request | None = None

    def reply() -> Reply:
        nonlocal request
        request = decode(arrays, header, Request)
        return node.handle(request)

    outcome = emit(reply, quiet=True)
    # A question that could not be read was not put to the node.
    if request is not None and is_release(request.kind, refused=isinstance(outcome, str)):
        charge()
    if isinstance(outcome, str):
        send(line, {}, {"refused": outcome})
        return
    if request is not None:
        note_sent(folder, request, outcome)
    out, head = encode(outcome)
    send(line, out, {**head, "ok": True})


def note_sent(folder: Path, request: Request, reply: Reply) -> None:
    """Write down what leaves, before it does."""
    size = sum(values.nbytes for values in reply.arrays.values()) + len(json.dumps(reply.meta, default=str))
    with (folder / SENT).open("a") as file:
        file.write(json.dumps({"kind": request.kind, "round": request.round, "bytes": size}) + "\n")
