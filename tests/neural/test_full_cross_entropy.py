"""Cross-entropy over the catalogue by hand: the same losses and gradients as autograd's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.core.kernels import add_dense
from fedrec.neural._full_cross_entropy import cross_entropy, read_rows
from fedrec.neural.batched import _apart
from fedrec.neural.device_optimizer import DeviceOptimizer, Stepper
from fedrec.neural.gather import gather_rows

K, L, S, D = 3, 5, 11, 4


def problem(seed: int, *, common: bool) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Leaves (table, bias, a square matrix that stands for the encoder), rows read, targets, weights."""
    rng = np.random.default_rng(seed)

    def leaf(*shape: int) -> Tensor:
        one = torch.from_numpy(rng.normal(size=shape))
        return (one[:1].expand(shape) if common else one).float().detach().requires_grad_()

    read, target = (torch.from_numpy(rng.integers(0, S, (K, L))) for _ in range(2))
    weight = torch.from_numpy(rng.choice([0.0, 0.0, 0.5, 1.5], (K, L))).float()
    weight[0] = 0.0
    return [leaf(K, S, D), leaf(K, S), leaf(K, D, D)], read, target, weight


def by_autograd(leaves: list[Tensor], read: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    table, bias, encoder = leaves
    h = torch.tanh(gather_rows(table, read) @ encoder)
    scores = h @ table.transpose(1, 2) + bias.unsqueeze(1)
    each = -scores.log_softmax(2).gather(2, target.unsqueeze(2)).squeeze(2)
    return (each * weight).sum(1)


def by_hand(leaves: list[Tensor], read: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    table, bias, encoder = leaves
    x, table = read_rows(table, read)
    return cross_entropy(torch.tanh(x @ encoder), table, bias, target, weight)


@given(seed=st.integers(0, 10_000), common=st.booleans(), factor=st.sampled_from([1.0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_losses_and_gradients_are_those_of_autograd(seed: int, common: bool, factor: float) -> None:
    """Repeated items, users who learn nothing, and a table that is one user's or everyone's."""
    leaves, *rest = problem(seed, common=common)
    scale = torch.tensor([factor, 1.0, factor])
    wanted, found = (loss(leaves, *rest) for loss in (by_autograd, by_hand))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    one, other = (torch.autograd.grad((loss * scale).sum(), leaves) for loss in (wanted, found))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("still", [(0, 1), (0,), (1,), (2,), (0, 2)])
def test_what_does_not_learn_has_no_gradient(still: tuple[int, ...]) -> None:
    leaves, *rest = problem(1, common=False)
    leaves = [leaf.detach() if place in still else leaf for place, leaf in enumerate(leaves)]
    moving = [leaf for leaf in leaves if leaf.requires_grad]
    one, other = (torch.autograd.grad(loss(leaves, *rest).sum(), moving) for loss in (by_autograd, by_hand))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


def test_a_user_is_computed_alone() -> None:
    """Not a bit of the others."""
    leaves, read, target, weight = problem(2, common=False)
    together = torch.autograd.grad(by_hand(leaves, read, target, weight).sum(), leaves[0])[0]
    own = [leaf[1:2].detach().requires_grad_() for leaf in leaves]
    alone = torch.autograd.grad(by_hand(own, read[1:2], target[1:2], weight[1:2]).sum(), own[0])[0]
    assert torch.equal(together[1], alone[0])


def test_a_hopeless_target_has_a_finite_loss_and_the_right_gradient() -> None:
    h = torch.full((1, 1, 1), 1000.0, requires_grad=True)
    table = torch.tensor([[[0.0], [1.0]]])
    loss = cross_entropy(h, table, torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    assert 80 < loss.item() < 90
    assert torch.autograd.grad(loss.sum(), h)[0].item() == 1.0


def test_broken_numbers_are_not_hidden() -> None:
    """Whoever sums the updates finds out by their norm."""
    leaves, *rest = problem(3, common=False)
    with torch.no_grad():
        leaves[0][1, 0] = torch.nan
    loss = by_hand(leaves, *rest)
    assert loss[1].isnan() and loss[2].isfinite()
    gradient = torch.autograd.grad(loss.sum(), leaves[0])[0]
    assert gradient[1].isnan().any() and gradient[2].isfinite().all()


def test_the_first_step_writes_over_gradients_that_are_no_one_elses() -> None:
    shared = torch.ones(2, 3)
    apart = _apart({"a": shared, "b": shared, "c": torch.ones(1).expand(2, 3)})
    delta: dict[str, Tensor] = {}
    Stepper(DeviceOptimizer(learning_rate=0.5), frozenset()).step(delta, apart)
    for name in "abc":
        torch.testing.assert_close(delta[name], torch.full((2, 3), -0.5))
    assert delta["a"].data_ptr() == shared.data_ptr() != delta["b"].data_ptr()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "rmsprop", "adam"])
def test_a_delta_that_is_not_there_yet_is_zero(name: str) -> None:
    rule = DeviceOptimizer.model_validate({"name": name, "learning_rate": 0.1, "proximal": 0.2})
    gradients = [torch.randn(2, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    lazy: dict[str, Tensor] = {}
    eager = {"a": torch.zeros(2, 3)}
    for delta in (lazy, eager):
        stepper = Stepper(rule, frozenset({"a"}))
        for gradient in gradients:
            stepper.step(delta, {"a": gradient.clone()})
    torch.testing.assert_close(lazy["a"], eager["a"])


def test_sums_longer_than_a_piece_are_whole() -> None:
    """Large tables are added up piece by piece, users in order; who counts for nothing may be broken."""
    values = np.random.default_rng(0).normal(size=(4, 150_000)).astype(np.float32)
    values[2] = np.nan
    total, scale = np.ones(150_000), np.array([0.5, 1.0, 0.0, 2.0])
    add_dense(total, values, scale)
    wanted = 1.0 + 0.5 * values[0].astype(np.float64) + values[1] + 2.0 * values[3].astype(np.float64)
    np.testing.assert_allclose(total, wanted, rtol=1e-12, atol=1e-12)
