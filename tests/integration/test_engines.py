"""One small run on several engines: the same round code must give the same model."""

from __future__ import annotations

from pathlib import Path

import flower_helpers
import numpy as np
import pytest
from conftest import last_out, planted

from fedrec.core.interactions import Catalog
from fedrec.recommenders.registry import build
from fedrec.rounds.settings import RoundSettings
from fedrec_client.node.node_folder import open_node
from fedrec_server.operations.deployment import run_deployment
from fedrec_server.rounds.coordinator import Outcome
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_folder import RunFolder

ROUNDS = RoundSettings(rounds=2, deadline_seconds=90)
NODES = 3


def _assert_same(outcome: Outcome, reference: Outcome) -> None:
    assert outcome.finished and outcome.rounds == reference.rounds
    for name, values in reference.shared.items():
        np.testing.assert_allclose(outcome.shared[name], values, rtol=1e-4, atol=1e-6)
    expected = reference.result["test"]["metrics"]["all"]
    for name, estimate in outcome.result["test"]["metrics"]["all"].items():
        assert estimate["value"] == pytest.approx(expected[name]["value"], abs=1e-9)


def test_users_of_one_node_or_of_three_one_model(tmp_path: Path) -> None:
    reference = run_in_process(flower_helpers.lay_out(tmp_path / "one", 1, ROUNDS))
    _assert_same(run_in_process(flower_helpers.lay_out(tmp_path / "spread", NODES, ROUNDS)), reference)


def test_users_whom_no_cohort_held_are_folded_in(tmp_path: Path) -> None:
    """Untrained vectors would say nothing; a device asks the trained model instead, and so does a simulation."""
    split = last_out(planted())
    config = parse_config(
        {
            "model": {"kind": "mf", "embedding_size": 4},
            "federation": {"rounds": 2, "sampling_rate": 0.2, "evaluate_every": 2},
            "evaluation": {"bootstrap": 20},
            "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
        }
    )
    prepared = Prepared(split, Catalog.bare(split.train.item_ids), {"name": "planted"})
    folder = RunFolder.create(tmp_path / "run", config, prepared, 1)
    outcome = run_in_process(folder.path)
    node = open_node(folder.path / "nodes" / "0")
    recommender, users = build(config.model), np.arange(120)
    history = split.batch(split.history("refit"))
    begun = recommender.init_local(users, config.federation.seed)["user_vector"]
    used = node.local_state(outcome.shared, "refit", 2)["user_vector"]
    folded = recommender.fold_in(outcome.shared, history)["user_vector"]
    never = np.isclose(used, folded, atol=1e-6).all(axis=1)
    assert 50 < never.sum() < 110
    assert not np.isclose(used, begun, atol=1e-6).all(axis=1).any()


@pytest.mark.slow
@pytest.mark.deployment
def test_a_deployment_gives_the_model_of_the_in_process_engine(tmp_path: Path) -> None:
    """Secure: integers sum to the same bits. Flower's simulation is held against the same in its own module."""
    folder = flower_helpers.lay_out(tmp_path / "deployed", NODES, ROUNDS, secure=True)
    deployed = run_deployment(folder, NODES)
    here = run_in_process(flower_helpers.lay_out(tmp_path / "here", NODES, ROUNDS, secure=True))
    _assert_same(deployed, here)
    for name, values in here.shared.items():
        np.testing.assert_array_equal(deployed.shared[name], values)
    for k in range(NODES):
        assert list((folder / "nodes" / str(k) / "local").glob("refit-*"))
    assert not list((folder / "federation").rglob("*key*"))
