"""Who takes part in a round: by coins, or once in a pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from secagg_helpers import PLAIN

from fedrec.core.messages import Reply, Request
from fedrec.core.recommender import RoundSeed
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import build
from fedrec.rounds.local_training import in_cohort, in_turn
from fedrec.rounds.settings import NodeSettings
from fedrec_client.node.node_folder import open_node, write_node
from fedrec_simulations.experiments.config import Config

MODEL = MfConfig(embedding_size=4)
SHUFFLED = NodeSettings(seed=5, sampling_rate=0.2, sampling="shuffled")


@given(st.integers(0, 2**63 - 1), st.floats(0.01, 1.0), st.integers(0, 5))
def test_everyone_has_one_turn_in_every_pass(seed: int, rate: float, pass_: int) -> None:
    users, rounds = np.arange(50), round(1 / rate)
    first = pass_ * rounds + 1
    turns = [in_turn(users, rate, RoundSeed(seed, r)) for r in range(first, first + rounds)]
    assert np.sum(turns, axis=0).tolist() == [1] * 50


def test_turns_are_drawn_anew_in_each_pass_and_alike_for_all_rounds() -> None:
    users = np.arange(20_000)
    turns = np.array([in_turn(users, 0.1, RoundSeed(7, r)) for r in range(1, 21)])
    # 2,000 a round, standard deviation 42; two passes agree for one user in ten.
    assert np.abs(turns.sum(axis=1) - 2_000).max() < 250
    same = (turns[:10].argmax(axis=0) == turns[10:].argmax(axis=0)).mean()
    assert abs(same - 0.1) < 0.02


def test_coins_leave_some_out_of_a_pass() -> None:
    often = np.sum([in_cohort(np.arange(20_000), 0.1, RoundSeed(7, r)) for r in range(1, 11)], axis=0)
    # (1 - 0.1)^10 of the users are never drawn, and as many twice or more.
    assert abs((often == 0).mean() - 0.9**10) < 0.02


def test_a_node_trains_those_whose_turn_it_is(tmp_path: Path, split: Split) -> None:
    write_node(tmp_path, split, MODEL, SHUFFLED, EvaluationSettings(bootstrap=0), aggregation=PLAIN)
    node = open_node(tmp_path)
    shared = build(MODEL).init_shared(split.train.n_items, 5)
    trained = []
    for round_ in range(1, 6):
        reply = node.handle(Request("train", round_, "tuning", shared))
        assert isinstance(reply, Reply)
        trained.append(reply.meta["users"])
    assert sum(trained) == split.train.n_users
    assert max(trained) < split.train.n_users


def test_beside_a_privacy_target_only_coins_are_accounted_for() -> None:
    plain = {
        "name": "x",
        "model": {"kind": "mf"},
        "federation": {"sampling": "shuffled", "sampling_rate": 0.1, "rounds": 10},
        "privacy": {"unit": "user", "epsilon": 3.0, "aggregator": "sealed"},
    }
    with pytest.raises(ValidationError, match="sampling is 'shuffled' beside a privacy target"):
        Config.model_validate(plain)
