"""A node's folder: laid out when a run is prepared, opened by every process that serves the node.

    node.json, bundle.json                recommender, settings and terms; the app bundle that belongs to it
    shard.npz                             its users' interactions
    catalog.safetensors                   public categories of the items, where there are any
    identity.key, secagg.json             its signing key and its promises, under secure aggregation
    local/, unsent/, ledger/, outbox/     written by the node itself

Out of scope: answering requests (`node`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedrec.core.errors import RunError
from fedrec.core.files import read_arrays, write_arrays, write_json, write_secret
from fedrec.data.split import Split
from fedrec.data.splits import load_shard, save_shard
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.evaluation.settings import parse_evaluation
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import ModelConfig, parse
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import CohortTerms, SecaggTerms, Terms, parse_terms, rules_of
from fedrec.wire.bundle import write_expected
from fedrec_client.node._commitments import Promises
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Matrix, Node, Simulated
from fedrec_client.node.node_terms import check_deployed


def write_node(
    folder: Path,
    split: Split,
    model: ModelConfig,
    settings: NodeSettings,
    evaluation: EvaluationSettings,
    categories: Matrix | None = None,
    privacy: PrivacyTerms | None = None,
    *,
    aggregation: Terms,
    identity: Identity | None = None,
) -> None:
    """Lay out a node's folder; what it holds is for this node alone. categories [I, G] are public.

    Raises:
        RunError: a folder that has an identity already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if identity is not None:
        write_secret(folder / "identity.key", identity.secret)
    if isinstance(aggregation, SecaggTerms | CohortTerms):
        Promises.create(rules_of(aggregation), folder)
    if categories is not None:
        write_arrays(folder / "catalog.safetensors", {"categories": categories})
    save_shard(split, folder / "shard.npz")
    parts = {
        "model": model,
        "settings": settings,
        "evaluation": evaluation,
        "privacy": privacy,
        "aggregation": aggregation,
    }
    plain = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
    write_json(folder / "node.json", plain)
    write_expected(folder)


def open_node(folder: Path, *, simulated: Simulated | None = None, deployed: bool = False) -> Node:
    """The node of a folder written by `write_node`, with the local state it had when it stopped.

    Args:
        folder: of the node.
        simulated: for simulations in one process only, which need no protection from their own coordinator. "full":
            take every step of secure aggregation, and keep its promises in memory; "integers": hand in its integers
            without masks.
        deployed: the node is no simulation's, so that sums without any noise need the terms' explicit word.

    Raises:
        RunError: the folder is missing or incomplete.
        PrivacyRefused: its terms do not fit each other, or what it would let out.
        ConfigError: evaluation settings that no node has, such as those of a simulation alone.
    """
    try:
        config = json.loads((folder / "node.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            f"node folder {folder} has no readable node.json ({error}): prepare the run first"
        ) from error
    public, key = folder / "catalog.safetensors", folder / "identity.key"
    privacy = PrivacyTerms.model_validate(config["privacy"]) if config["privacy"] else None
    aggregation = parse_terms(config["aggregation"])
    if deployed:
        check_deployed(aggregation, privacy)
    return Node(
        load_shard(folder / "shard.npz"),
        # A folder that was handed over names what is installed here.
        parse(config["model"], paths=not deployed),
        NodeSettings.model_validate(config["settings"]),
        parse_evaluation(config["evaluation"], paths=not deployed),
        LocalStore(folder / "local"),
        read_arrays(public)[0]["categories"].astype(np.float32) if public.exists() else None,
        privacy,
        folder,
        aggregation=aggregation,
        identity=Identity.read(key) if key.exists() else None,
        simulated=simulated,
    )
