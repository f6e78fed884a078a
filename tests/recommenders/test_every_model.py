"""Every kind of model, and what may be laid around one, in every privacy mode and over nodes: one round code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flower_helpers
import numpy as np
import pytest
from small_models import ALL, FEATURES, LONGER, MODELS, features_of, model_of

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.neural.example_gradients import DeviceModel
from fedrec.privacy.settings import Trust
from fedrec.recommenders.registry import RECOMMENDERS, build
from fedrec.rounds.chain import train_users
from fedrec.rounds.settings import RoundSettings
from fedrec_server.rounds.coordinator import Outcome
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import parse_config

ROUNDS = RoundSettings(rounds=2)
NODES = 3


def run(folder: Path, name: str, nodes: int = NODES, **how: Any) -> Outcome:
    model = model_of(name)
    rounds = ROUNDS.model_copy(update={"rounds": build(model).fixed_rounds or LONGER.get(name, 2)})
    return run_in_process(
        flower_helpers.lay_out(folder, nodes, rounds, model=model, features=FEATURES, **how)
    )


def assert_alike(one: Outcome, other: Outcome, rtol: float, atol: float) -> None:
    assert one.finished and other.finished and one.shared.keys() == other.shared.keys()
    for name, values in other.shared.items():
        np.testing.assert_allclose(one.shared[name], values, rtol=rtol, atol=atol, err_msg=name)


def test_no_kind_is_left_out() -> None:
    assert set(MODELS) == set(RECOMMENDERS.builtin_names())


@pytest.mark.parametrize("name", ALL)
def test_nodes_and_masks_change_nothing(tmp_path: Path, name: str) -> None:
    alone = run(tmp_path / "alone", name, nodes=1)
    begun = build(model_of(name)).init_shared(60, 5, features_of(name))
    # What is compared below has moved by far more than it may differ.
    assert any(np.abs(alone.shared[part] - begun.get(part, 0)).max() > 0.01 for part in alone.shared)
    spread = run(tmp_path / "spread", name)
    assert_alike(spread, alone, rtol=1e-3, atol=2e-5)
    masked = run(tmp_path / "masked", name, secure=True)
    # Integers of 32 bits and a bound of 2 for each of 120 users: a sum is right to about 1e-7 of it.
    assert_alike(masked, spread, rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
@pytest.mark.parametrize("name", ALL)
def test_every_model_learns_under_every_user_level_mode(tmp_path: Path, name: str, trust: Trust) -> None:
    outcome = run(tmp_path / "run", name, trust=trust, secure=trust == "distributed")
    assert outcome.finished and all(np.isfinite(v).all() for v in outcome.shared.values())
    metrics = outcome.result["test"]["metrics"]["all"]
    assert 0.0 <= metrics["full/ndcg@10"]["value"] <= 1.0


@pytest.mark.parametrize("name", ALL)
def test_a_norm_is_that_of_what_is_sent_though_items_repeat(name: str) -> None:
    """Users come back to an item; what bounds their update must see the sum of it, not its parts."""
    recommender, users, events = build(model_of(name)), 6, 9
    rng = np.random.default_rng(8)
    batch = UserBatch(
        np.arange(users),
        np.arange(users + 1) * events,
        rng.integers(0, 4, size=users * events) * 7,
        np.ones(users * events, dtype=np.float32),
    )
    shared = recommender.init_shared(60, 5, features_of(name))
    local = recommender.init_local(batch.user, 5)
    server = recommender.init_server(shared)
    for number in range(1, 1 + (recommender.fixed_rounds or 4)):
        key, layout = RoundSeed(5, number), recommender.layout(60, number)
        updates, _ = recommender.compute_updates(shared, local, batch, key, 60)
        sent = [np.linalg.norm(updates.vector(user, layout)) for user in range(users)]
        np.testing.assert_allclose(updates.norms(), sent, rtol=1e-6, atol=1e-12)
        total, local = train_users(recommender, shared, local, batch, key, None, 60)
        shared, server = recommender.apply(shared, server, total)


@pytest.mark.parametrize("name", ALL)
def test_protecting_interactions_is_refused_before_anything_runs(name: str) -> None:
    plain = model_of(name).model_dump(mode="json")
    values = {
        "data": {"features": {"parts": ["categories"]}} if plain.get("features") else {},
        "model": plain,
        "privacy": {"unit": "interaction", "epsilon": 4.0, "aggregator": "sealed"},
    }
    if isinstance(build(model_of(name)), DeviceModel):
        assert parse_config(values).model.kind == plain["kind"]
        return
    with pytest.raises(ConfigError, match=rf"recommender '{plain['kind']}' has no per-example training"):
        parse_config(values)
