"""Clipping: what one user can change in a sum is bounded by C, over all blocks together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, ragged, seeds

from fedrec.core.updates import BlockSpec, Dense, Layout, Rows, Updates, UpdateSum
from fedrec.privacy.clipping import add_clipped

ITEMS, D = 7, 3
LAYOUT = Layout({"table": BlockSpec((ITEMS, D)), "bias": BlockSpec((ITEMS,)), "layer": BlockSpec((2, D))})
norms = st.floats(1e-6, 1e6)


def made(seed: int, n_users: int, size: float = 1.0) -> Updates:
    rng = np.random.default_rng(seed)
    batch = ragged(rng, n_users, ITEMS, ITEMS)
    n = len(batch.item)
    table = (size * rng.normal(size=(n, D))).astype(np.float32)
    blocks = {
        "table": Rows(batch.indptr, batch.item, table),
        "bias": Rows(batch.indptr, batch.item, size * rng.normal(size=n)),
        "layer": Dense(size * rng.normal(size=(n_users, 2, D))),
    }
    return Updates(blocks, n_users, rng.random(n_users), np.ones(n_users))


def of_layers(values: np.ndarray) -> Updates:
    """Users who only touch the dense layer."""
    no_one = np.zeros(len(values) + 1, dtype=np.int64)
    none = np.zeros(0, dtype=np.int64)
    blocks = {
        "table": Rows(no_one, none, np.zeros((0, D))),
        "bias": Rows(no_one, none, np.zeros(0)),
        "layer": Dense(values),
    }
    return Updates(blocks, len(values), np.zeros(len(values)), np.zeros(len(values)))


def clipped(updates: Updates, clip_norm: float | None) -> tuple[np.ndarray, UpdateSum]:
    total = UpdateSum(LAYOUT.zeros())
    add_clipped(total, updates, clip_norm)
    return LAYOUT.flatten(total.blocks), total


@given(seed=seeds, clip_norm=norms, size=norms)
@quick
def test_one_user_changes_the_sum_by_at_most_c_and_keeps_its_direction(
    seed: int, clip_norm: float, size: float
) -> None:
    updates = made(seed, 1, size)
    sent, total = clipped(updates, clip_norm)
    raw = updates.vector(0, LAYOUT)
    assert np.linalg.norm(sent) <= clip_norm * (1 + 1e-6)
    expected = raw * min(1.0, clip_norm / np.linalg.norm(raw))
    np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-12 * size)
    assert total.norm == pytest.approx(np.linalg.norm(raw), rel=1e-5)


@given(seed=seeds, n_users=st.integers(1, 6), clip_norm=st.floats(0.1, 10.0))
@quick
def test_sum_is_that_of_the_users_clipped_one_by_one(seed: int, n_users: int, clip_norm: float) -> None:
    updates = made(seed, n_users)
    sent, total = clipped(updates, clip_norm)
    raw = np.stack([updates.vector(user, LAYOUT) for user in range(n_users)])
    size = np.linalg.norm(raw, axis=1)
    np.testing.assert_allclose(sent, (raw * np.minimum(1, clip_norm / size)[:, None]).sum(0), atol=1e-5)
    assert total.users == n_users
    assert total.clipped == (size > clip_norm).sum()
    assert (total.loss, total.examples) == pytest.approx((updates.loss.sum(), n_users))


@given(seed=seeds, n_users=st.integers(1, 5))
@quick
def test_below_the_bound_nothing_changes(seed: int, n_users: int) -> None:
    updates = made(seed, n_users)
    free, _ = clipped(updates, None)
    bounded, total = clipped(updates, float(updates.norms().max()) * 1.001)
    np.testing.assert_array_equal(bounded, free)
    assert total.clipped == 0


def test_norm_is_over_all_blocks_not_per_block() -> None:
    """3 in one block and 4 in another is a norm of 5: clipped to 1 they become 0.6 and 0.8, not 1 and 1."""
    one = np.array([0, 1])
    blocks = {
        "table": Rows(one, np.array([2]), np.array([[3.0, 0.0, 0.0]])),
        "bias": Rows(one, np.array([5]), np.array([4.0])),
        "layer": Dense(np.zeros((1, 2, D))),
    }
    total = UpdateSum(LAYOUT.zeros())
    add_clipped(total, Updates(blocks, 1, np.zeros(1), np.zeros(1)), 1.0)
    assert total.blocks["table"][2, 0] == pytest.approx(0.6)
    assert total.blocks["bias"][5] == pytest.approx(0.8)
    assert (total.norm, total.clipped) == (pytest.approx(5.0), 1)


@pytest.mark.parametrize("clip_norm", [None, 1e-6, 1.0, 5.0, 1e6])
def test_zero_and_tiny_updates_pass_as_they_are(clip_norm: float | None) -> None:
    values = np.zeros((2, 2, D))
    values[1, 0, 0] = 1e-150
    sent, total = clipped(of_layers(values), clip_norm)
    np.testing.assert_allclose(sent[-2 * D], 1e-150, rtol=1e-12)
    assert np.count_nonzero(sent) == 1
    assert (total.users, total.clipped) == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("block", list(LAYOUT.blocks))
def test_a_bad_update_counts_as_zero_where_an_error_would_tell(bad: float, block: str) -> None:
    updates, others = made(4, 5), made(4, 5)
    for each in (updates, others):
        values = each.blocks[block].values  # type: ignore[attr-defined]
        where = values.size // 2
        if each is updates:
            if values.dtype == np.float32 and bad == 1e200:
                bad = np.inf
            values.reshape(-1)[where] = bad
    total = UpdateSum(LAYOUT.zeros())
    add_clipped(total, updates, 1.0)
    (spoilt,) = np.flatnonzero(~np.isfinite(_norms(updates)))
    expected = UpdateSum(LAYOUT.zeros())
    add_clipped(expected, others, 1.0)
    own = others.vector(int(spoilt), LAYOUT)
    own *= min(1.0, 1.0 / np.linalg.norm(own))
    np.testing.assert_allclose(
        LAYOUT.flatten(total.blocks), LAYOUT.flatten(expected.blocks) - own, rtol=1e-6, atol=1e-9
    )
    assert (total.users, total.zeroed) == (5, 1), "it still counts"


def _norms(updates: Updates) -> np.ndarray:
    with np.errstate(all="ignore"):
        return updates.norms()
