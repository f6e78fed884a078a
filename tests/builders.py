"""Lays out small runs: the folders of nodes and coordinator for one split, every part with a default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secagg_helpers import PLAIN

from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import ModelConfig
from fedrec.rounds.agreement import config_hash
from fedrec.rounds.settings import NodeSettings, RoundSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import Terms
from fedrec_client.node.node_folder import write_node
from fedrec_server.rounds.task import Task


def write_run(
    folder: Path,
    split: Split,
    model: ModelConfig,
    *,
    nodes: int = 3,
    settings: NodeSettings | None = None,
    rounds: RoundSettings | None = None,
    evaluation: EvaluationSettings | None = None,
    privacy: PrivacyTerms | None = None,
    aggregation: Terms = PLAIN,
    identities: Sequence[Identity] | None = None,
) -> Path:
    """Write `nodes/<k>` and `coordinator` of a run; returns `folder`.

    Args:
        folder: of the run.
        split: sharded over the nodes; its parts say what is evaluated.
        model: what is trained.
        nodes: how many.
        settings: of the nodes.
        rounds: of the coordinator.
        evaluation: of both.
        privacy: the plan, for a private run.
        aggregation: how replies are summed.
        identities: of the nodes on the roster of secure aggregation.
    """
    settings, evaluation = settings or NodeSettings(seed=5), evaluation or EvaluationSettings(bootstrap=20)
    for k in range(nodes):
        write_node(
            folder / "nodes" / str(k),
            split.shard(k, nodes),
            model,
            settings,
            evaluation,
            privacy=privacy,
            aggregation=aggregation,
            identity=identities[k] if identities else None,
        )
    Task(
        model=model,
        settings=settings,
        rounds=rounds or RoundSettings(rounds=4, deadline_seconds=5),
        evaluation=evaluation,
        n_items=split.train.n_items,
        config_hash=config_hash(model, settings, evaluation, split.train.item_ids, privacy, aggregation),
        has_validation=split.validation is not None,
        has_test=split.test is not None,
        privacy=privacy,
        aggregation=aggregation,
    ).write(folder / "coordinator")
    return folder
