"""A run before its first round, in memory: what its nodes and its coordinator are given.

Out of scope: where that is written (`run_folder`), and the rounds (`engines`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.data.split import Split
from fedrec.recommenders.registry import build
from fedrec.rounds.agreement import config_hash
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node, Simulated
from fedrec_server.operations.enrolment import Enrolment, enrol
from fedrec_server.operations.privacy_terms import terms_of
from fedrec_server.operations.sections import NoPrivacy, PrivacySection
from fedrec_server.rounds.task import Task
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.features import category_matrix
from fedrec_simulations.experiments.prepare import Prepared

Engine = Literal["in-process", "flower", "deployment"]


@dataclass(frozen=True)
class RunSetup:
    """What a run is made of.

    Attributes:
        config: the whole configuration.
        prepared: the data.
        shards: each node's part of it.
        task: the coordinator's.
        enrolment: terms of aggregation, and the keys that go with them.
    """

    config: Config
    prepared: Prepared
    shards: tuple[Split, ...]
    task: Task
    enrolment: Enrolment

    @classmethod
    def of(cls, config: Config, prepared: Prepared, nodes: int) -> RunSetup:
        """A new run with the users spread over `nodes` nodes.

        Raises:
            ConfigError: the configuration is for other data.
            PrivacyRefused: the guarantee would be meaningless, or nothing could be learned.
        """
        split = prepared.split
        problems = build(config.model).size_conflicts(split.train.n_users, split.train.n_items)
        if problems:
            raise ConfigError("; ".join(problems))
        privacy = None
        if not isinstance(config.privacy, NoPrivacy):
            privacy = terms_of(config, split.train.n_users, split.train.n_items, _account(config, prepared))
        if privacy is not None and privacy.plan.metrics is not None and split.test is None:
            raise ConfigError(
                "privacy.metrics is 'noised' and nothing is held out to be evaluated: set it to 'none'"
            )
        shards = (split,) if nodes == 1 else tuple(split.shard(k, nodes) for k in range(nodes))
        held = {"has_validation": split.validation is not None, "has_test": split.test is not None}
        enrolment = enrol(config, [shard.train.n_users for shard in shards], privacy, **held)
        shared = (config.model, config.node_settings(), config.node_evaluation())
        agreed = config_hash(*shared, split.train.item_ids, privacy, enrolment.terms)
        task = Task(
            config.model,
            shared[1],
            config.round_settings(),
            shared[2],
            split.train.n_items,
            agreed,
            held["has_validation"],
            held["has_test"],
            privacy,
            aggregation=enrolment.terms,
        )
        return cls(config, prepared, shards, task, enrolment)

    @cached_property
    def categories(self) -> NDArray[np.float32]:
        """[I, G] 0/1 membership of items in categories, which is public."""
        return category_matrix(self.prepared.catalog)

    def node(self, k: int, store: LocalStore, *, simulated: Simulated | None = None) -> Node:
        """Node k, in memory.

        Args:
            k: from 0.
            store: of its personal state.
            simulated: see `fedrec_client.node.node_folder.open_node`.
        """
        return Node(
            self.shards[k],
            self.task.model,
            self.task.settings,
            self.task.evaluation,
            store,
            self.categories,
            self.task.privacy,
            aggregation=self.task.aggregation,
            identity=self.enrolment.identity(k),
            simulated=simulated,
        )


def node_count(config: Config, engine: Engine, nodes: int | None = None) -> int:
    """Over how many nodes the users are spread: in process one hosts all of them where nothing depends on nodes."""
    alone = engine == "in-process" and config.one_node_suffices
    return nodes or (1 if alone else config.federation.nodes)


def _account(config: Config, prepared: Prepared) -> str:
    """By what name ledgers know whose data these are; synthetic users have no account with the real ones."""
    if isinstance(config.privacy, PrivacySection) and config.privacy.account is not None:
        return config.privacy.account
    name, made = str(prepared.description["name"]), prepared.description.get("synthetic")
    if config.data.name == "file" and config.data.path is not None:
        name = f"file {config.data.path.absolute()}"
    return f"synthetic {made['factor']:g} x {name}" if made else name
