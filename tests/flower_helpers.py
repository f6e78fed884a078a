"""Imports Flower once without its libraries' own deprecation warnings, and lays out small runs for it."""

from __future__ import annotations

import warnings
from pathlib import Path

with warnings.catch_warnings():
    # typer, which Flower imports, uses names that click has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app  # noqa: F401

from conftest import last_out, planted

from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.learning.settings import NodeSettings, RoundSettings
from fedrec.models.mf import MfConfig
from fedrec_client.node import config_hash, write_node
from fedrec_server.coordinator import Task

MODEL = MfConfig(embedding_size=4, learning_rate=0.1)
EVALUATION = EvaluationSettings(bootstrap=20)


def lay_out(folder: Path, nodes: int, rounds: RoundSettings, *, validation: bool = False) -> Path:
    """A run folder with planted data, as `fedrec train` lays one out; returns it."""
    split = last_out(planted())
    if not validation:
        split = type(split)(split.train.merge(split.validation), None, split.test)
    settings = NodeSettings(seed=5, clip_norm=2.0)
    for k in range(nodes):
        write_node(folder / "nodes" / str(k), split.shard(k, nodes), MODEL, settings, EVALUATION)
    fingerprint = config_hash(MODEL, settings, EVALUATION, split.train.item_ids)
    task = Task(MODEL, settings, rounds, EVALUATION, split.train.n_items, fingerprint, validation, True)
    task.write(folder / "coordinator")
    return folder
