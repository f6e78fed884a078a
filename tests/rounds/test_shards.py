"""Large item tables are sent in public random parts, the same for everyone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flower_helpers import lay_out
from hypothesis import given
from hypothesis import strategies as st
from test_secure_rounds import ROUNDS, Nodes, records, run

from fedrec.core.updates import BlockSpec, Layout
from fedrec.recommenders.closed_form.ease import Ease, EaseConfig
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig
from fedrec.recommenders.registry import build
from fedrec.rounds.build import round_layout
from fedrec.rounds.settings import NodeSettings
from fedrec.rounds.shards import keep_outside, shard_rows
from fedrec_server.rounds.task import Task

ITEMS = 500
MF = MatrixFactorisation(MfConfig(embedding_size=8))
WHOLE = MF.layout(ITEMS)


def settings(limit: int, seed: int = 0) -> NodeSettings:
    return NodeSettings(seed=seed, shard_parameters=limit)


@given(st.integers(9, WHOLE.size), st.integers(0, 99), st.integers(1, 9))
def test_a_part_fits_and_comes_back_where_it_was(limit: int, seed: int, round_: int) -> None:
    layout = round_layout(WHOLE, ITEMS, settings(limit, seed), round_, gradient=True)
    assert layout.size <= limit
    assert layout.size > limit - 9 or layout.size == WHOLE.size
    blocks = {name: np.random.default_rng(0).normal(size=spec.shape) for name, spec in WHOLE.blocks.items()}
    back = layout.unflatten(layout.flatten(blocks))
    rows = layout.blocks["item_bias"].rows
    for name, values in blocks.items():
        sent = np.ones(ITEMS, dtype=bool) if rows is None else np.isin(np.arange(ITEMS), rows)
        np.testing.assert_array_equal(back[name][sent], values[sent])
        assert not back[name][~sent].any()


def test_every_row_has_its_turns_and_rounds_differ() -> None:
    turns = np.zeros(ITEMS)
    for round_ in range(1, 401):
        rows = shard_rows(WHOLE, ITEMS, WHOLE.size // 4, 0, round_)
        assert rows is not None and (np.diff(rows) > 0).all()
        turns[rows] += 1
    assert abs(turns.mean() - 100) < 1 and turns.std() < 12 and turns.min() > 55


def test_small_models_and_closed_forms_are_sent_whole() -> None:
    assert round_layout(WHOLE, ITEMS, settings(WHOLE.size), 1, gradient=True) is WHOLE
    assert round_layout(WHOLE, ITEMS, NodeSettings(), 1, gradient=True) is WHOLE
    ease = Ease(EaseConfig())
    assert not ease.gradient_rounds
    assert round_layout(ease.layout(ITEMS), ITEMS, settings(10), 1, gradient=False).size > 10


def test_dense_blocks_are_always_sent() -> None:
    layout = Layout({"item_table": BlockSpec((ITEMS, 4)), "head": BlockSpec((7, 3))})
    part = round_layout(layout, ITEMS, settings(101), 1, gradient=True)
    assert part.blocks["head"].rows is None and part.size == 101


def test_rows_that_were_not_sent_stay_as_they_were() -> None:
    part = round_layout(WHOLE, ITEMS, settings(900), 1, gradient=True)
    before = {"item_table": np.zeros((ITEMS, 8)), "m/item_bias": np.zeros(ITEMS), "step": np.zeros(1)}
    after = {name: values + 1 for name, values in before.items()}
    kept = keep_outside(part, ITEMS, before, after)
    rows = part.blocks["item_table"].rows
    assert rows is not None
    assert kept["item_table"][rows].all() and kept["m/item_bias"].sum() == len(rows) and kept["step"] == 1
    assert kept["item_table"].any(axis=1).sum() == len(rows)


@pytest.mark.parametrize("secure", [False, True])
def test_a_run_in_parts_moves_only_the_rows_of_its_rounds(tmp_path: Path, secure: bool) -> None:
    folder = lay_out(tmp_path, 3, ROUNDS, secure=secure, shard_parameters=60)
    task = Task.read(folder / "coordinator")
    n_items, recommender = task.n_items, build(task.model)
    outcome = run(folder, Nodes(folder))
    layout = recommender.layout(n_items)
    assert layout.size > 60
    sent = {int(r) for t in (1, 2, 3) for r in shard_rows(layout, n_items, 60, 5, t)}  # type: ignore[union-attr]
    first = recommender.init_shared(n_items, 5)["item_table"]
    moved = np.flatnonzero((outcome.shared["item_table"] != first).any(axis=1))
    assert set(moved.tolist()) <= sent and len(moved) > 0 and len(sent) < n_items
    if secure:
        assert all(record["secagg"]["bytes_up_per_node"] < 2500 for record in records(folder))
