"""Flower on the server's side: the only module here that imports flwr.

`GridExchange` carries the round protocol over Flower's public `Grid`. It polls by itself because
`Grid.send_and_receive` sleeps three seconds between looks over HTTP, and because a reply that is late, broken or
forged must become a `Failure` of its node and nothing else. There is no Flower `Strategy`: a strategy is a place
for round logic that averages weights, and the round logic here is the coordinator, the same under every engine;
a subclass would only hand `configure_*` and `aggregate_*` through. Out of scope: round logic, starting processes.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Flower reports home by default; it reads these when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedrec.core.errors import FederationError, ProtocolError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.refusals import REFUSED, sentence_of
from fedrec.wire.messages import decode, encode
from fedrec.wire.packed import pack, unpack
from fedrec_server.federation.launch import Launch
from fedrec_server.federation.site_cohorts import sites_only
from fedrec_server.rounds.coordinator import open_coordinator

MESSAGE_TYPES = {"train": MessageType.TRAIN, "evaluate": MessageType.EVALUATE}
#: Flower needs about this long to notice that a node is gone.
NOTICE_SECONDS = 60.0
#: Who fetches a reply before all of its content has arrived waits for a second in Flower's own code, so the looks
#: are no closer than its pieces.
SHORTEST_POLL_SECONDS = 0.2
LONGEST_POLL_SECONDS = 1.0
#: Of the time waited so far: looking for answers makes an exchange this much longer at most.
POLL_SHARE = 0.05
MAX_REASON = 300
LEFT = "the node has left"
#: Stages whose question is sent once more when half of the time has brought no answer: Flower hands a message out
#: once, so a connection that is cut at the wrong moment loses it. A node that had it sends the same bytes again.
REPEATED = ("share", "confirm", "unmask")


@dataclass
class _Seen:
    """What is known about a node: its id at Flower, when it came, and until when it is left alone."""

    node_id: int
    activated: str
    rests_until: float = 0.0


class GridExchange:
    """The round protocol over a Grid.

    A node that lets a deadline pass is left alone for as long again (at most a minute) or until it comes anew: a
    SuperNode serves one message at a time, and Flower calls a dead one reachable for about a minute. A node that has
    left is not waited for: what it sent before counts, what it did not send is missing at once.

    Args:
        grid: of the run.
        left: names of the nodes that will not answer any more.
        clock, sleep: in seconds.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        left: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._left = left
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[str, _Seen] = {}
        self._names: dict[int, str] = {}

    def nodes(self) -> list[str]:
        """Names of the nodes that can be asked now, sorted.

        A name is the one under which the operator registered the node; in a simulation, the node's number.
        """
        try:
            present = sorted(self._grid.get_nodes(), key=lambda info: (info.registered_at, info.node_id))
        except Exception:  # the SuperLink is away; it may come back
            return []
        for info in present:
            if info.node_id not in self._names:
                self._names[info.node_id] = self._new_name(info.name)
            name = self._names[info.node_id]
            seen = self._seen.get(name)
            if seen is None or seen.activated != info.last_activated_at:
                self._seen[name] = _Seen(info.node_id, info.last_activated_at)
        now, here = self._clock(), {self._names[info.node_id] for info in present}.difference(self._left())
        return sorted(name for name in here if self._seen[name].rests_until <= now)

    def _new_name(self, registered: str) -> str:
        taken = set(self._names.values())
        numbers = map(str, itertools.count(len(taken)))
        return next(name for name in itertools.chain([registered], numbers) if name and name not in taken)

    def wait_for(self, count: int, timeout_seconds: float) -> list[str]:
        """The nodes that are there once `count` have come or left, or when the time is over."""
        deadline = self._clock() + timeout_seconds
        while len(here := self.nodes()) + len(self._left()) < count and self._clock() < deadline:
            self._sleep(LONGEST_POLL_SECONDS / 2)
        return here

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """One entry per request, in the order of the requests."""
        start = self._clock()
        deadline = start + deadline_seconds
        answers: dict[str, Reply | Failure] = {}
        waiting = self._send(requests, deadline_seconds, answers)
        repeated = False
        while waiting:
            # In this order: what a node sent before it left is read.
            left = self._left()
            for message in self._pull(waiting):
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None and node not in answers:
                    answers[node] = self._read(node, message)
            answers |= {node: Failure(LEFT) for node in waiting.values() if node in left}
            waiting = {id_: node for id_, node in waiting.items() if node not in answers}
            now = self._clock()
            if not waiting or now >= deadline:
                break
            if not repeated and now >= start + deadline_seconds / 2:
                repeated = True
                late = {node: requests[node] for node in waiting.values() if requests[node].kind in REPEATED}
                waiting |= self._send(late, deadline - now, {})
            pause = min(max(POLL_SHARE * (now - start), SHORTEST_POLL_SECONDS), LONGEST_POLL_SECONDS)
            self._sleep(min(pause, deadline - now))
        for node in set(waiting.values()):
            answers[node] = Failure(f"no answer within {deadline_seconds:g} s")
            self._seen[node].rests_until = self._clock() + min(deadline_seconds, NOTICE_SECONDS)
        return {node: answers[node] for node in requests}

    def _send(
        self, requests: Mapping[str, Request], ttl_seconds: float, answers: dict[str, Reply | Failure]
    ) -> dict[str, str]:
        """Message ids by which answers are known; what cannot be sent is a failure at once."""
        waiting: dict[str, str] = {}
        contents: dict[int, Callable[[], RecordDict]] = {}
        for node, request in requests.items():
            if node not in self._seen:
                answers[node] = Failure("the node is not known to the federation")
                continue
            if id(request) not in contents:
                contents[id(request)] = record_maker(request)
            message = Message(
                contents[id(request)](),
                self._seen[node].node_id,
                MESSAGE_TYPES.get(request.kind, MessageType.QUERY),
                ttl=ttl_seconds,
                group_id=str(request.round),
            )
            try:
                (message_id,) = self._grid.push_messages([message])
            except Exception as error:
                answers[node] = Failure(f"the request could not be sent ({type(error).__name__})")
                continue
            if message_id:
                waiting[message_id] = node
            else:
                answers[node] = Failure("the request was refused by the SuperLink")
        return waiting

    def _pull(self, waiting: Iterable[str]) -> list[Message]:
        try:
            return list(self._grid.pull_messages(list(waiting)))
        except Exception:  # the SuperLink is away; the deadline decides
            return []

    def _read(self, node: str, message: Message) -> Reply | Failure:
        if message.has_error():
            # Words of a node are not shown: it says a code, and what Flower says is bounded.
            if message.error.code == REFUSED:
                return Failure(sentence_of(str(message.error.reason)))
            reason = " ".join(str(message.error.reason or "no reason given").split())
            return Failure(f"error {message.error.code}: {reason[:MAX_REASON]}")
        if message.metadata.src_node_id != self._seen[node].node_id:
            return Failure("the answer came from another node")
        try:
            return parse_records(message.content)
        except ProtocolError as error:
            return Failure(str(error))
        except Exception as error:  # whatever a stranger's bytes can cause in a parser
            return Failure(f"the reply cannot be read ({type(error).__name__})")


def record_maker(request: Request) -> Callable[[], RecordDict]:
    """Makes the records of a request anew for each node; the bytes, which no one can change, are shared.

    Flower carries each record and each array as objects of their own: small arrays join the header.
    """
    arrays, header = encode(request)
    packed = pack(arrays)
    if packed is not None:
        return lambda: RecordDict({"header": ConfigRecord({**header, "packed": packed})})
    ready = {name: Array(values) for name, values in arrays.items()}

    def make() -> RecordDict:
        copies = {name: Array(a.dtype, a.shape, a.stype, a.data) for name, a in ready.items()}
        return RecordDict({"arrays": ArrayRecord(copies), "header": ConfigRecord(dict(header))})

    return make


def parse_records(content: RecordDict) -> Reply:
    """The reply in a message.

    Raises:
        ProtocolError: the records are not those of a reply.
    """
    arrays, record = content.get("arrays"), content.get("header")
    if not isinstance(record, ConfigRecord) or not set(content) <= {"arrays", "header"}:
        raise ProtocolError(f"reply has records {sorted(content)!r:.200}: expected 'arrays' and 'header'")
    header = dict(record)
    packed = header.pop("packed", None)
    if isinstance(packed, bytes) and arrays is None:
        return decode(unpack(packed), header, Reply)
    if not isinstance(arrays, ArrayRecord) or packed is not None:
        raise ProtocolError(
            "reply has records of another type: expected arrays, or a header with packed ones"
        )
    return decode({name: array.numpy() for name, array in arrays.items()}, header, Reply)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the coordinator of `run-dir`; `nodes` and `wait-seconds` say for how many nodes it waits at first."""
    config = context.run_config
    folder = Path(str(config["run-dir"])) / "coordinator"
    launch = Launch(folder)
    if not folder.is_dir():
        raise FederationError(f"run-dir {folder.parent} has no coordinator folder: prepare the run first")
    # A coordinator whose SuperLink was restarted lives on for a while; the last word is said while held.
    with launch.held(float(config["wait-seconds"])):
        try:
            exchange = GridExchange(grid, left=launch.left)
            exchange.wait_for(int(config["nodes"]), float(config["wait-seconds"]))
            coordinator = open_coordinator(
                folder,
                exchange,
                on_event=launch.report,
                stop=launch.stop_requested,
                devices=sites_only(folder),
            )
            launch.end(finished=coordinator.run().finished)
        except Exception as error:
            launch.end(finished=False, error=error)
            raise
