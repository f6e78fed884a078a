"""The benchmark of what a sum tells finds planted pairs, and stops finding them under noise."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.rounds.chain import train_users

# By its path: packages elsewhere are called `benchmarks`, too.
SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "sum_leakage.py"))
MODEL, pairs_found = SCRIPT["MODEL"], SCRIPT["pairs_found"]
USERS, EACH, D = 10, 6, 32


def planted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each user, of any length and sign, along the user's own direction."""
    owner = rng.permutation(np.repeat(np.arange(USERS), EACH))
    lengths = rng.uniform(0.1, 2.0, len(owner)) * rng.choice([-1.0, 1.0], len(owner))
    return rng.normal(size=(USERS, D))[owner] * lengths[:, None], owner


def test_planted_pairs_are_all_found_and_nothing_else() -> None:
    precision, recall, _ = pairs_found(*planted(np.random.default_rng(1)))
    assert precision == recall == 1.0


def test_rows_of_different_users_are_no_pairs() -> None:
    rows, _ = planted(np.random.default_rng(2))
    precision, _, _ = pairs_found(rows, np.arange(len(rows)))
    assert precision == 0.0


def test_noise_as_large_as_the_rows_hides_the_pairs() -> None:
    rng = np.random.default_rng(3)
    rows, owner = planted(rng)
    _, recall, _ = pairs_found(rows + rng.normal(size=rows.shape), owner)
    assert recall < 0.05


def test_the_sum_of_real_updates_gives_its_users_away() -> None:
    """Four users with histories that hardly meet: their rows in the exact sum are those of the same users."""
    n_items, length = 4000, 5
    item = np.random.default_rng(4).choice(n_items, 4 * length, replace=False).astype(np.int64)
    indptr = np.arange(0, 4 * length + 1, length, dtype=np.int64)
    batch, key = UserBatch(np.arange(4), indptr, item, np.ones(len(item), dtype=np.float32)), RoundSeed(0, 1)
    shared, local = MODEL.init_shared(n_items, 0), MODEL.init_local(batch.user, 0)
    total, _ = train_users(MODEL, shared, local, batch, key, None, n_items)
    # An item that no one else has may still be someone else's sampled negative.
    touched = [MODEL.touched_rows(batch.take(np.array([u])), key, n_items) for u in range(4)]
    alone = [i for i in item if sum(i in rows for rows in touched) == 1]
    owner = np.array([np.flatnonzero(item == i)[0] // length for i in alone])
    precision, recall, _ = pairs_found(total.blocks["item_table"][alone], owner)
    assert len(alone) >= 15
    assert precision == 1.0 and recall == pytest.approx(1.0, abs=0.05)
