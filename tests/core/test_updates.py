"""Updates: compact blocks mean the dense vector of the layout, whatever is done with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, ragged, seeds

from fedrec.core.errors import ProtocolError
from fedrec.core.updates import (
    Block,
    BlockSpec,
    Dense,
    Gram,
    Layout,
    Pairs,
    RowGram,
    Rows,
    Updates,
    UpdateSum,
)

ITEMS, D = 9, 4
Made = tuple[Block, BlockSpec, np.ndarray]
"""A block of U users, its shape, and what it means, written out: [U, *shape]."""


def dense(rng: np.random.Generator, n_users: int) -> Made:
    values = rng.normal(size=(n_users, ITEMS, D))
    return Dense(values), BlockSpec((ITEMS, D)), values


def dense_symmetric(rng: np.random.Generator, n_users: int) -> Made:
    half = rng.normal(size=(n_users, 2, D, D))
    values = half + half.swapaxes(-1, -2)
    return Dense(values, symmetric=True), BlockSpec((2, D, D), symmetric=True), values


def rows(rng: np.random.Generator, n_users: int) -> Made:
    batch = ragged(rng, n_users, ITEMS, ITEMS)
    values, full = rng.normal(size=(len(batch.item), D)), np.zeros((n_users, ITEMS, D))
    full[batch.row, batch.item] = values
    return Rows(batch.indptr, batch.item, values), BlockSpec((ITEMS, D)), full


def scalar_rows(rng: np.random.Generator, n_users: int) -> Made:
    batch = ragged(rng, n_users, ITEMS, ITEMS)
    values, full = rng.normal(size=len(batch.item)), np.zeros((n_users, ITEMS))
    full[batch.row, batch.item] = values
    return Rows(batch.indptr, batch.item, values), BlockSpec((ITEMS,)), full


def gram(rng: np.random.Generator, n_users: int) -> Made:
    batch = ragged(rng, n_users, ITEMS, ITEMS)
    x, full = rng.normal(size=len(batch.item)), np.zeros((n_users, ITEMS))
    full[batch.row, batch.item] = x
    outer = full[:, :, None] * full[:, None, :]
    return Gram(batch.indptr, batch.item, x), BlockSpec((ITEMS, ITEMS), symmetric=True), outer


def cells(rng: np.random.Generator, n_users: int, *, symmetric: bool) -> Made:
    """Many entries of few cells, so that some are named several times."""
    n = 12 * n_users
    user, row, column = rng.integers(0, n_users, n), rng.integers(0, ITEMS, n), rng.integers(0, ITEMS, n)
    values, full = rng.normal(size=n), np.zeros((n_users, ITEMS, ITEMS))
    np.add.at(full, (user, row, column), values)
    if symmetric:
        off = row != column
        np.add.at(full, (user[off], column[off], row[off]), values[off])
    block = Pairs.summed(user, row, column, values, n_users, symmetric=symmetric)
    return block, BlockSpec((ITEMS, ITEMS), symmetric=symmetric), full


def pairs(rng: np.random.Generator, n_users: int) -> Made:
    return cells(rng, n_users, symmetric=False)


def symmetric_pairs(rng: np.random.Generator, n_users: int) -> Made:
    return cells(rng, n_users, symmetric=True)


def row_gram(rng: np.random.Generator, n_users: int) -> Made:
    batch = ragged(rng, n_users, ITEMS, ITEMS)
    weight, factor = rng.normal(size=len(batch.item)), rng.normal(size=(n_users, D))
    full = np.zeros((n_users, ITEMS, D, D))
    outer = factor[:, :, None] * factor[:, None, :]
    full[batch.row, batch.item] = weight[:, None, None] * outer[batch.row]
    return RowGram(batch.indptr, batch.item, weight, factor), BlockSpec((ITEMS, D, D), symmetric=True), full


KINDS = (dense, dense_symmetric, rows, scalar_rows, gram, pairs, symmetric_pairs, row_gram)
kinds = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


def all_kinds(rng: np.random.Generator, n_users: int) -> tuple[Updates, Layout]:
    made = {make.__name__: make(rng, n_users) for make in KINDS}
    layout = Layout({name: spec for name, (_, spec, _) in made.items()})
    blocks = {name: block for name, (block, _, _) in made.items()}
    return Updates(blocks, n_users, rng.random(n_users), np.full(n_users, 2.0)), layout


@kinds
@given(seed=seeds, n_users=st.integers(1, 6))
@quick
def test_norm_is_that_of_what_is_sent(make: Callable[..., Made], seed: int, n_users: int) -> None:
    block, spec, full = make(np.random.default_rng(seed), n_users)
    sent = [np.square(spec.pack(values)).sum() for values in full]
    np.testing.assert_allclose(block.squared_norms(), sent, rtol=1e-9, atol=1e-12)


@kinds
@given(seed=seeds, n_users=st.integers(1, 6))
@quick
def test_adding_is_the_scaled_sum(make: Callable[..., Made], seed: int, n_users: int) -> None:
    rng = np.random.default_rng(seed)
    block, spec, full = make(rng, n_users)
    scale = rng.normal(size=n_users) * rng.integers(0, 2, n_users)
    start = rng.normal(size=spec.shape)
    total = start.copy()
    block.add_into(total, scale)
    expected = start + np.tensordot(scale, full, axes=1)
    np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-10)


@given(seed=seeds)
@quick
def test_single_precision_rows_sum_in_double(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block, _, full = rows(rng, 4)
    assert isinstance(block, Rows)
    single = Rows(block.indptr, block.row, block.values.astype(np.float32))
    total = np.full((ITEMS, D), 1e6)
    single.add_into(total, np.ones(4))
    expected = 1e6 + full.astype(np.float32).astype(np.float64).sum(0)
    np.testing.assert_allclose(total, expected, rtol=1e-15, atol=0)
    sent = np.square(full.reshape(4, -1)).sum(1)
    np.testing.assert_allclose(single.squared_norms(), sent, rtol=1e-5)


@given(seed=seeds, n=st.integers(1, 5), outer=st.integers(0, 3))
@quick
def test_symmetric_block_round_trip(seed: int, n: int, outer: int) -> None:
    rng = np.random.default_rng(seed)
    spec = BlockSpec((*(3,) * outer, n, n), symmetric=True)
    half = rng.normal(size=spec.shape)
    full = half + half.swapaxes(-1, -2)
    packed = spec.pack(full)
    assert packed.shape == (spec.size,) == (3**outer * n * (n + 1) // 2,)
    np.testing.assert_array_equal(spec.unpack(packed), full)


@given(seed=seeds)
@quick
def test_layout_round_trip_in_the_declared_order(seed: int) -> None:
    updates, layout = all_kinds(np.random.default_rng(seed), 3)
    totals = layout.zeros()
    updates.add_into(totals, np.ones(3))
    flat = layout.flatten(totals)
    assert flat.shape == (layout.size,)
    first = next(iter(layout.blocks.values()))
    np.testing.assert_array_equal(flat[: first.size], first.pack(totals[next(iter(layout.blocks))]))
    back = layout.unflatten(flat)
    assert list(back) == list(layout.blocks)
    for name, values in back.items():
        np.testing.assert_allclose(values, totals[name], rtol=1e-12, atol=1e-12)
    # The order of the mapping that is handed over does not matter, the layout's does.
    np.testing.assert_array_equal(layout.flatten(dict(reversed(totals.items()))), flat)


@given(seed=seeds, n_users=st.integers(1, 5))
@quick
def test_norm_of_an_update_is_over_all_blocks(seed: int, n_users: int) -> None:
    updates, layout = all_kinds(np.random.default_rng(seed), n_users)
    sent = [np.linalg.norm(updates.vector(user, layout)) for user in range(n_users)]
    np.testing.assert_allclose(updates.norms(), sent, rtol=1e-9)


@given(seed=seeds, parts=st.integers(2, 5))
@quick
def test_merging_sums_is_the_sum_over_all(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    updates, layout = all_kinds(rng, parts)
    whole, merged = UpdateSum(layout.zeros()), UpdateSum(layout.zeros())
    for user in range(parts):
        one = np.eye(parts)[user]
        part = UpdateSum(layout.zeros(), 1, float(updates.loss[user]), 2.0, user % 2, float(user))
        updates.add_into(part.blocks, one)
        merged.merge(part)
    updates.add_into(whole.blocks, np.ones(parts))
    for name, values in whole.blocks.items():
        np.testing.assert_allclose(merged.blocks[name], values, rtol=1e-12, atol=1e-12)
    expected = {
        "users": parts,
        "loss": updates.loss.sum(),
        "examples": 2.0 * parts,
        "clipped": parts // 2,
        "norm": sum(range(parts)),
        "zeroed": 0,
    }
    assert dict(merged.numbers()) == pytest.approx(expected)


def test_wrong_length_and_wrong_blocks_are_refused() -> None:
    updates, layout = all_kinds(np.random.default_rng(0), 2)
    with pytest.raises(ProtocolError, match=rf"expected \({layout.size},\)"):
        layout.unflatten(np.zeros(layout.size + 1))
    totals = layout.zeros()
    del totals["gram"]
    with pytest.raises(ProtocolError, match="expected"):
        updates.add_into(totals, np.ones(2))
    assert all((values == 0).all() for values in totals.values()), "nothing was added"
