"""Devices of a population that come and go: they check in, join what there is, answer, and come back."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import grpc
from device_helpers import Device, channel
from job_helpers import device
from wire_helpers import POPULATION

from fedrec.core.errors import FedrecError
from fedrec.secagg.roster import Identity
from fedrec.wire.device_messages import dump
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_client.node.node import Node
from fedrec_server.devices.server import FrontEnd


class Population:
    """So many devices with a user each, in threads.

    Attributes:
        ends: (job, reason) of every session that was ended by the service.
    """

    def __init__(self, front_end: FrontEnd, users: int) -> None:
        self._port, self._over = front_end.port, threading.Event()
        self.ends: list[tuple[str, str]] = []
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._live, args=(user,), daemon=True) for user in range(users)
        ]

    def __enter__(self) -> Population:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.errors, self.errors

    def _live(self, user: int) -> None:
        with channel(self._port) as line:
            while not self._over.is_set():
                try:
                    self._take_part(line, user)
                except grpc.RpcError:
                    pass  # the job has ended, or the front end
                except BaseException as error:
                    self.errors.append(error)
                    return
                self._over.wait(0.05)

    def _take_part(self, line: grpc.Channel, user: int) -> None:
        mine = Device(line)
        found = mine.check_in(population=POPULATION)
        if not found.job:
            return
        mine.job = found.job
        document = json.loads(mine.call("GetTask", messages.TaskRequest(job=found.job)).content)
        if not mine.join().session:
            return
        node = device(document, user, Identity(mine.key))
        reply = self._next(mine)
        while reply is not None and reply.state == messages.QUESTION:
            mine.known = reply.number
            reply = self._answer(mine, node, reply)
        if reply is not None:
            self.ends.append((found.job, reply.reason))

    def _answer(self, mine: Device, node: Node, reply: Any) -> Any:
        try:
            content = dump(node.handle(mine.question(reply)))
        except FedrecError:
            return self._next(mine, answered=reply.number, answer=b"refused", refused=True)
        return self._next(mine, answered=reply.number, answer=content)

    def _next(self, mine: Device, **fields: Any) -> Any:
        while not self._over.is_set():
            reply = mine.stage(**fields)
            if reply.state != messages.WAIT:
                return reply
            time.sleep(min(reply.retry_after_seconds, 0.2))
            fields = {}
        return None
