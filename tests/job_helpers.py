"""Jobs over a small registry, and devices of this process that form their cohorts: plain nodes with fresh keys."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from wire_helpers import POPULATION

from fedrec.core.errors import AggregationAborted, FedrecError
from fedrec.core.files import read_arrays
from fedrec.core.interactions import Interactions
from fedrec.core.messages import Exchange, Failure, Reply, Request
from fedrec.data.split import Split
from fedrec.evaluation.settings import parse_evaluation
from fedrec.privacy.terms import PrivacyTerms
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.recommenders.registry import parse
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import parse_terms
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.private_releases import PaidReleases
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.offers import Offer
from fedrec_server.jobs.preparation import new_job
from fedrec_server.jobs.specification import JobSpecification, parse_job
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry
from fedrec_server.rounds.cohorts import Cohort, Cohorts, CohortWanted, Ending, Joined, Patience

ITEMS = 12
ITEM_IDS = [f"film-{k:02d}" for k in range(ITEMS)]
#: Two rounds, noise that hides no user and can be foreseen, so that models can be compared bit by bit.
EASE: dict[str, Any] = {
    "model": {
        "kind": "dp_ease",
        "top_items": ITEMS,
        "histogram_items": 5,
        "history_items": 20,
        "reg": 1.0,
        "cut": 0.0,
    },
    "federation": {"seed": 3, "stage_seconds": 20.0, "deadline_seconds": 20.0},
    "privacy": {
        "unit": "user",
        "trust": "distributed",
        "epsilon": 1e6,
        "delta": 1e-6,
        "force": True,
        "survivors": 0.75,
        "noise_seed": 5,
    },
    "job": {
        "participations": 2,
        "retry_seconds": 0.01,
        "longest_retry_seconds": 0.02,
        "cohort": {"target": 4, "least": 3, "wait_seconds": 20.0},
    },
}
#: Gradients, six rounds.
MF: dict[str, Any] = EASE | {
    "model": {"kind": "mf", "embedding_size": 4},
    "federation": EASE["federation"] | {"rounds": 6},
    "job": EASE["job"] | {"participations": 6},
}


def specification(plain: Mapping[str, Any] = EASE, **job: Any) -> JobSpecification:
    """With other values of `[job]`."""
    values = json.loads(json.dumps(dict(plain)))
    values["job"] |= job
    return parse_job(values, "test")


@dataclass
class Operator:
    """Registry, keys and jobs in one folder."""

    folder: Path
    clock: Callable[[], float] = time.time

    @classmethod
    def make(cls, folder: Path, clock: Callable[[], float] = time.time) -> Operator:
        online = OnlineKeys.generate()
        made = cls(folder, clock)
        registry = Registry.create(made.models, POPULATION, OfflineKeys.generate(), online)
        online.save(KeyFolder(made.keys, POPULATION).online_folder)
        known = Items.of(ITEM_IDS, ITEM_IDS, [()] * ITEMS, np.ones(ITEMS, np.float32))
        files = pack_model(Popular(np.ones(ITEMS, np.float32)), known, {"unit": "none"})
        registry.promote(registry.publish(files, Terms(0, int(time.time())), online).version, online)
        return made

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def registry(self) -> Registry:
        return Registry(self.models, POPULATION)

    def job(self, what: JobSpecification | None = None, *, start: bool = True) -> Job:
        job = new_job(
            self.jobs,
            what or specification(),
            POPULATION,
            registry=self.models,
            keys=self.keys,
            clock=self.clock,
        )
        if start:
            job.start()
        return job


def history(user: int) -> list[int]:
    """Items of a user, the same each time."""
    return np.random.default_rng(user).permutation(ITEMS)[: 4 + user % 4].tolist()


def device(
    document: Mapping[str, Any], user: int, identity: Identity, store: LocalStore | None = None, **more: Any
) -> Node:
    """A user's device, as the SDK makes its node."""
    parts, own = document["node"], history(user)
    terms = PrivacyTerms.model_validate(parts["privacy"])
    train = Interactions(
        np.zeros(len(own), np.int64),
        np.array(own, np.int64),
        np.ones(len(own), np.float32),
        np.arange(len(own), dtype=np.int64),
        np.array(["this device"]),
        np.array(ITEM_IDS),
    )
    return Node(
        Split(train, None, None, user_key=np.array([user], dtype=np.int64)),
        parse(parts["model"]),
        NodeSettings.model_validate(parts["settings"]),
        parse_evaluation(parts["evaluation"]),
        store or LocalStore(None),
        privacy=terms,
        aggregation=parse_terms(parts["aggregation"]),
        identity=identity,
        releases=PaidReleases(terms.plan.charges),
        **more,
    )


#: Told (kind, round, user) before each answer; False: the device is gone.
Fate = Callable[[str, int, int], bool]


@dataclass
class LocalOffers:
    """Offers to devices of this process.

    Attributes:
        users: how many are here when a cohort forms; asked each time.
        fate: of each answer.
        offers: by id, those that devices may take.
        asked: (kind, round) of every exchange.
        endings: of cohorts.
        others: each cohort has other users than the one before.
        prepared: rounds whose cohorts were opened early.
    """

    users: Callable[[], int] = lambda: 4
    fate: Fate = lambda kind, round_, user: True
    offers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    others: bool = False
    documents: dict[str, bytes] = field(default_factory=dict)

    def make(self, offer: Offer) -> None:
        self.offers[offer.id] = "running"
        self.documents[offer.id] = offer.document

    def end(self, offer: str, state: str) -> None:
        if offer in self.offers:
            self.offers[offer] = state

    @contextmanager
    def open(
        self, offer: Offer, stop: Callable[[], bool], patience: Patience
    ) -> Iterator[tuple[Exchange, Cohorts]]:
        made = _LocalCohorts(self, json.loads(offer.document))
        yield made, made


class _LocalCohorts:
    """Both ways to the devices of one job."""

    def __init__(self, world: LocalOffers, document: Mapping[str, Any]) -> None:
        self._world, self._document = world, document
        self._nodes: dict[str, tuple[int, Node]] = {}
        self._stores: dict[int, LocalStore] = defaultdict(lambda: LocalStore(None))
        self._count = 0

    def nodes(self) -> list[str]:
        return []

    def form(self, wanted: CohortWanted, stop: Callable[[], bool]) -> Cohort:
        if stop():
            raise AggregationAborted("the job was paused")
        self._count += 1
        here = min(self._world.users(), wanted.target)
        if here < wanted.least:
            raise AggregationAborted(f"{here} devices joined: expected at least {wanted.least}")
        members = []
        first = self._count * here if self._world.others else 0
        for user in range(first, first + here):
            identity, node = Identity.create(), f"{self._count}/{user}"
            self._nodes[node] = (user, device(self._document, user, identity, self._stores[user]))
            members.append(Joined(node, identity.public))
        return Cohort(str(self._count), tuple(members))

    def prepare(self, wanted: CohortWanted) -> None:
        self._world.prepared.append(wanted.round)

    def close(self, cohort: Cohort, ending: Ending) -> None:
        self._world.endings.append(ending)
        for member in cohort.members:
            self._nodes.pop(member.node, None)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        first = next(iter(requests.values()))
        self._world.asked.append((first.kind, first.round))
        return {node: self._ask(node, request) for node, request in requests.items()}

    def _ask(self, node: str, request: Request) -> Reply | Failure:
        user, here = self._nodes[node]
        if not self._world.fate(request.kind, request.round, user):
            return Failure("no answer")
        try:
            return here.handle(request)
        except FedrecError as error:
            return Failure(str(error))


def model_digest(job: Job, number: int = 1) -> str:
    """SHA-256 of the final model of a run."""
    arrays = read_arrays(job.run(number) / "coordinator" / "model.safetensors")[0]
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    """Runs until it ends; joined by the caller."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
