"""A job of small devices in this process: its task, and cohorts of real nodes that are formed at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedrec.core.errors import AggregationAborted, FedrecError
from fedrec.core.interactions import Interactions
from fedrec.core.messages import Failure, Reply, Request, Summed
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.private.dp_ease import DpEaseConfig
from fedrec.rounds.agreement import config_hash
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import CohortTerms
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_client.node.node_folder import write_node
from fedrec_client.node.private_releases import PaidReleases
from fedrec_server.operations.enrolment import cohort_terms, schedule_of
from fedrec_server.operations.privacy_terms import terms_of
from fedrec_server.operations.specification import TaskSpecification
from fedrec_server.rounds._joint_exchange import summed
from fedrec_server.rounds.cohorts import Cohort, CohortSettings, CohortWanted, Devices, Ending, Joined
from fedrec_server.rounds.task import Task

ITEMS = 12
ITEM_IDS = np.array([f"film-{k:02d}" for k in range(ITEMS)])
#: Noise that hides no user: what comes out can be held against the truth.
CONFIG = TaskSpecification.model_validate(
    {
        "model": DpEaseConfig(top_items=ITEMS, histogram_items=5, history_items=20, reg=1.0, cut=0.0),
        "federation": {"seed": 3, "deadline_seconds": 5, "max_abandoned": 3},
        "privacy": {
            "unit": "user",
            "trust": "distributed",
            "epsilon": 1e6,
            "delta": 1e-6,
            "force": True,
            "survivors": 0.5,
            "noise_seed": 11,
        },
    }
)


@dataclass
class Job:
    """What devices and coordinator agree on.

    Attributes:
        terms, privacy: of the job.
        signer: of its rosters.
        settings: of cohorts.
    """

    terms: CohortTerms
    privacy: PrivacyTerms
    signer: Identity
    settings: CohortSettings
    config: TaskSpecification = CONFIG

    @classmethod
    def of(
        cls,
        target: int,
        most: int,
        *,
        least: int | None = None,
        config: TaskSpecification = CONFIG,
        separation: int | None = 2,
        max_users: int = 1,
    ) -> Job:
        signer = Identity.create()
        privacy = terms_of(config, target, ITEMS, "films", separation=separation)
        assert privacy is not None
        schedule = schedule_of(config, privacy, has_validation=False, has_test=False)
        terms = cohort_terms(
            config, target, most, privacy.run, privacy, schedule, signer, max_users=max_users
        )
        return cls(terms, privacy, signer, CohortSettings(target, least or target, 5.0), config)

    def write(self, folder: Path) -> Path:
        """The coordinator's task."""
        settings, evaluation = self.config.node_settings(), EvaluationSettings()
        fingerprint = config_hash(self.config.model, settings, evaluation, ITEM_IDS, self.privacy, self.terms)
        Task(
            self.config.model,
            settings,
            self.config.round_settings(),
            evaluation,
            ITEMS,
            fingerprint,
            False,
            False,
            self.privacy,
            aggregation=self.terms,
        ).write(folder)
        return folder

    def node(self, history: Sequence[int], identity: Identity, user: int) -> Node:
        """A device in one session."""
        return Node(
            split_of([history], user),
            self.config.model,
            NodeSettings.model_validate(self.config.node_settings().model_dump()),
            EvaluationSettings(),
            LocalStore(None),
            privacy=self.privacy,
            aggregation=self.terms,
            identity=identity,
            releases=PaidReleases(self.privacy.plan.charges),
        )

    def site(self, folder: Path, histories: Sequence[Sequence[int]], identity: Identity, user: int) -> Path:
        """The folder of a node that stays, with several users."""
        write_node(
            folder,
            split_of(histories, user),
            self.config.model,
            self.config.node_settings(),
            EvaluationSettings(),
            privacy=self.privacy,
            aggregation=self.terms,
            identity=identity,
        )
        return folder


def split_of(histories: Sequence[Sequence[int]], first_user: int) -> Split:
    """All of the events of some users, to be trained on."""
    items = np.concatenate([np.array(each, dtype=np.int64) for each in histories])
    users = np.repeat(np.arange(len(histories)), [len(each) for each in histories])
    train = Interactions(
        users.astype(np.int64),
        items,
        np.ones(len(items), np.float32),
        np.arange(len(items), dtype=np.int64),
        np.array([f"user {k}" for k in range(len(histories))]),
        ITEM_IDS,
    )
    keys = np.arange(first_user, first_user + len(histories), dtype=np.int64)
    return Split(train, None, None, user_key=keys)


#: Whether a device is silent: (place, request) -> bool.
Silent = Callable[[int, Request], bool]


@dataclass
class LocalCohorts:
    """Forms cohorts of the devices of some histories, and carries messages to their nodes.

    Attributes:
        job: of the devices.
        rounds: histories of the devices of each cohort, in turn; the last one again.
        silent: see `Silent`.
        summing: whether vectors are added up here.
        wanted, prepared, endings, seen: what was asked.
    """

    job: Job
    rounds: Sequence[Sequence[Sequence[int]]]
    silent: Silent = lambda place, request: False
    wanted: list[CohortWanted] = field(default_factory=list)
    prepared: list[CohortWanted] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    seen: list[tuple[str, Request, Reply | Failure]] = field(default_factory=list)
    nodes_here: dict[str, Node] = field(default_factory=dict)

    def form(self, wanted: CohortWanted, stop: Callable[[], bool]) -> Cohort:
        self.wanted.append(wanted)
        number = len(self.wanted)
        histories = self.rounds[min(number, len(self.rounds)) - 1]
        if len(histories) < wanted.least:
            raise AggregationAborted(f"{len(histories)} devices joined: expected at least {wanted.least}")
        members = []
        self.nodes_here = {}
        for place, history in enumerate(histories):
            identity, node = Identity.create(), f"c{number}/{place}"
            self.nodes_here[node] = self.job.node(history, identity, 100 * number + place)
            members.append(Joined(node, identity.public))
        return Cohort(f"c{number}", tuple(members))

    def prepare(self, wanted: CohortWanted) -> None:
        self.prepared.append(wanted)

    def close(self, cohort: Cohort, ending: Ending) -> None:
        self.endings.append(ending)
        self.nodes_here = {}

    def nodes(self) -> list[str]:
        return []

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        out = {node: self._serve(node, request) for node, request in requests.items()}
        self.seen += [(node, requests[node], reply) for node, reply in out.items()]
        return out

    def devices(self, *sites: Joined) -> Devices:
        return Devices(self, self, self.job.signer, self.job.settings, sites)

    def _serve(self, node: str, request: Request) -> Reply | Failure:
        if self.silent(int(node.rpartition("/")[2]), request):
            return Failure("no answer")
        try:
            return self.nodes_here[node].handle(request)
        except FedrecError as error:
            return Failure(str(error))


class SummingCohorts(LocalCohorts):
    """The same, with vectors added up here."""

    def exchange_summed(
        self, requests: Mapping[str, Request], deadline_seconds: float, dtype: str, length: int
    ) -> Summed:
        return summed(_Plain(self), requests, deadline_seconds, dtype, length)


@dataclass(frozen=True)
class _Plain:
    inner: LocalCohorts

    def nodes(self) -> list[str]:
        return []

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        return self.inner.exchange(requests, deadline_seconds)
