"""Tasks for devices of this process, and an exchange that asks their nodes over their sockets."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.errors import FedrecError
from fedrec.core.messages import Failure, Reply, Request
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.private.dp_ease import DpEaseConfig
from fedrec.recommenders.registry import build
from fedrec.rounds.agreement import config_hash
from fedrec.rounds.build import round_layout
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec.secagg.roster import Identity, Member, Roster
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.terms import SecaggTerms
from fedrec_client.node.forward import SENT, SOCKET, forward, listen
from fedrec_client.node.node import Node
from fedrec_client.training._charging import AskedCharge, NotCharged, Till
from fedrec_client.training._host import make_node, serve
from fedrec_server.rounds.task import Task

ITEMS = 12
ITEM_IDS = [f"film-{k:02d}" for k in range(ITEMS)]
MODEL = DpEaseConfig(top_items=ITEMS, histogram_items=5, history_items=20, reg=1.0, cut=0.0)
#: Noise that hides no one: what comes out can be held against the truth.
SETTINGS = PrivacySettings(
    unit="user", trust="distributed", epsilon=1e6, delta=1e-6, force=True, survivors=0.75
)
PLANNED_ROUNDS = 2


def terms_for(users: int, identities: Sequence[Identity]) -> tuple[PrivacyTerms, SecaggTerms, NodeSettings]:
    """What a campaign of so many devices agrees on."""
    recommender, settings = build(MODEL), NodeSettings(seed=3, shard_parameters=1_000_000)
    sizes = [
        round_layout(recommender.layout(ITEMS, r), ITEMS, settings, r, gradient=False).size
        for r in range(1, PLANNED_ROUNDS + 1)
    ]
    plan = make_plan(
        SETTINGS,
        population=users,
        rounds=PLANNED_ROUNDS,
        schedule=recommender.noise_schedule(PLANNED_ROUNDS),
        parameters=max(sizes),
    )
    privacy = PrivacyTerms(plan=plan, run="ab" * 8, dataset="films", limit_epsilon=SETTINGS.epsilon)
    members = tuple(Member(name=str(k), key=each.public.hex(), users=1) for k, each in enumerate(identities))
    secagg = SecaggTerms(
        run=privacy.run,
        roster=Roster(members=members),
        range_users=users,
        clip_norm=plan.clip_norm,
        min_users=SETTINGS.survivors * users,
        plan=hashlib.sha256(plan.model_dump_json().encode()).hexdigest(),
        schedule=Schedule(refit_rounds=PLANNED_ROUNDS, guarded=()),
    )
    return privacy, secagg, settings


def node_parts(users: int, identities: Sequence[Identity]) -> dict[str, Any]:
    """The "node" part of a task."""
    privacy, secagg, settings = terms_for(users, identities)
    parts = {
        "model": MODEL,
        "settings": settings,
        "evaluation": EvaluationSettings(),
        "privacy": privacy,
        "aggregation": secagg,
    }
    return {name: part.model_dump(mode="json") for name, part in parts.items()}


def write_task(folder: Path, users: int, identities: Sequence[Identity], rounds: RoundSettings) -> None:
    """The coordinator's side of the same."""
    privacy, secagg, settings = terms_for(users, identities)
    evaluation = EvaluationSettings()
    fingerprint = config_hash(MODEL, settings, evaluation, np.array(ITEM_IDS), privacy, secagg)
    Task(
        model=MODEL,
        settings=settings,
        rounds=rounds,
        evaluation=evaluation,
        n_items=ITEMS,
        config_hash=fingerprint,
        has_validation=False,
        has_test=False,
        privacy=privacy,
        aggregation=secagg,
    ).write(folder)


class Device:
    """A node of `fedrec_client.training._host` that serves from a thread, until it vanishes.

    Attributes:
        charges: for each charge, how many answers had been noted when it was asked for.
        refuses: raised in the place of the next charges.
    """

    def __init__(self, folder: Path, parts: dict[str, Any], identity: Identity, history: list[int]) -> None:
        folder.mkdir(parents=True)
        wanted = {
            "node": parts,
            "item_ids": ITEM_IDS,
            "history": history,
            "user_key": 7,
            "identity": identity.secret.hex(),
        }
        self.folder, self.gone = folder, False
        self._listener = listen(folder)
        self.charges: list[int] = []
        self.refuses: FedrecError | None = None
        ours, theirs = socket.socketpair()
        self._ends, self._over = (ours, theirs), threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(make_node(wanted), AskedCharge(theirs)), daemon=True),
            threading.Thread(target=self._collect, args=(Till(ours, self._charge),), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, node: Node, charge: AskedCharge) -> None:
        with suppress(NotCharged):
            serve(node, self._listener, self.folder, charge)
        self._listener.close()
        (self.folder / SOCKET).unlink()

    def _collect(self, till: Till) -> None:
        """As `run_task` does: the first failure ends the session."""
        while not self._over.is_set():
            if till.serve(0.02):
                self._ends[0].close()
                return

    def _charge(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.charges.append(len(self.sent))

    def vanish(self) -> None:
        self.gone = True

    def end(self) -> None:
        self._over.set()
        with suppress(OSError):  # it has ended by itself
            self._listener.shutdown(2)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        for each in self._ends:
            each.close()

    @property
    def sent(self) -> list[str]:
        path = self.folder / SENT
        return path.read_text().splitlines() if path.exists() else []


#: Told (place, kind, round, "before" | "after") around each answer; True: the device vanishes at this point.
Fate = Callable[[int, str, int, str], bool]


class Devices:
    """An exchange that asks devices over their sockets."""

    def __init__(self, devices: Sequence[Device], fate: Fate = lambda *_: False) -> None:
        self.devices, self._fate = devices, fate

    def nodes(self) -> list[str]:
        return [str(k) for k, device in enumerate(self.devices) if not device.gone]

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        return {node: self._ask(int(node), request) for node, request in requests.items()}

    def _ask(self, place: int, request: Request) -> Reply | Failure:
        device = self.devices[place]
        if not device.gone and self._fate(place, request.kind, request.round, "before"):
            device.vanish()
        if device.gone:
            return Failure("no answer")
        try:
            reply = forward(device.folder, request)
        except FedrecError as error:
            return Failure(str(error))
        if self._fate(place, request.kind, request.round, "after"):
            device.vanish()
            return Failure("no answer")
        return reply
