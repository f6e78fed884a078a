"""Who is there: nodes that have shown that they run this task under an identity of their own.

Out of scope: what they are asked then (`coordinator`), and how a hello is read (`replies`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fedrec.core.errors import FederationError, ProtocolError
from fedrec.core.messages import Exchange, Reply, Request
from fedrec.secagg.terms import CohortTerms, SecaggTerms
from fedrec_server.rounds.replies import Host, read_hello, sift
from fedrec_server.rounds.task import Task

POLL_SECONDS = 0.2


class Attendance:
    """Nodes of one task; those that were let in once are not asked again.

    Args:
        task: what they must run.
        exchange: carries the questions.
        on_event: told who is refused, and why.
        sites_alone: no devices come to its cohorts, so that a round waits for as many sites as a sum needs.
    """

    def __init__(
        self,
        task: Task,
        exchange: Exchange,
        on_event: Callable[[dict[str, Any]], None],
        *,
        sites_alone: bool = False,
    ) -> None:
        self._task = task
        self._exchange = exchange
        self._on_event = on_event
        self._hosts: dict[str, Host] = {}
        self._least_nodes, self._least_users = task.rounds.min_nodes, 0.0
        if isinstance(task.aggregation, SecaggTerms):
            self._least_nodes = max(self._least_nodes, task.aggregation.min_nodes)
            self._least_users = task.aggregation.min_users
        elif isinstance(task.aggregation, CohortTerms):
            # Devices come with each cohort; sites take part when they are here.
            self._least_nodes = task.aggregation.rules.min_nodes if sites_alone else 0

    def meet(self) -> dict[str, Host]:
        """The nodes that are there and run this task; waits `wait_seconds` for as many as a round needs.

        Raises:
            FederationError: too few came.
        """
        rounds = self._task.rounds
        deadline = time.monotonic() + rounds.wait_seconds
        while True:
            present = self._exchange.nodes()
            # A node may be listed and yet be gone, or busy with the last message of a killed coordinator.
            self._greet(present, min(rounds.deadline_seconds, max(1.0, deadline - time.monotonic())))
            here = {node: self._hosts[node] for node in present if node in self._hosts}
            users = sum(host.users for host in here.values())
            if len(here) >= self._least_nodes and users >= self._least_users * (1.0 - 1e-12):
                return here
            if time.monotonic() > deadline:
                least = f"{self._least_nodes}" + (f" with {self._least_users:g}" if self._least_users else "")
                raise FederationError(
                    f"{len(here)} nodes came within {rounds.wait_seconds:g} s, with {users} users: expected at least "
                    f"{least}; start more nodes or lower federation.min_nodes"
                )
            time.sleep(POLL_SECONDS)

    def present(self) -> list[str]:
        """The nodes that were let in and are there, however few; waits for none."""
        return [node for node in self._exchange.nodes() if node in self._hosts]

    def _greet(self, present: list[str], deadline_seconds: float) -> None:
        """Let in those who are new and belong here."""
        strangers = {node: Request("hello", 0) for node in present if node not in self._hosts}
        if not strangers:
            return
        answers = self._exchange.exchange(strangers, deadline_seconds)
        known, refused = sift(strangers, answers, self._read_hello)
        self._hosts |= known
        for node, reason in refused.items():
            self._on_event({"refused": node, "reason": reason})

    def _read_hello(self, node: str, reply: Reply) -> Host:
        task = self._task
        if reply.meta.get("config") != task.config_hash:
            raise ProtocolError(f"node {node} runs another configuration: prepare it from this run's config")
        host = read_hello(node, reply, task.rounds.max_users_per_node, task.aggregation)
        taken = [other for other, known in self._hosts.items() if host.place == known.place is not None]
        if taken and taken != [node]:
            raise ProtocolError(f"node {node} has the identity of node {taken[0]}: enrol each node by itself")
        return host
