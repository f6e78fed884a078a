"""The server's optimiser against the plain mean, a hand-written recursion, and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import quick, seeds
from pydantic import ValidationError

from fedrec.core.updates import State
from fedrec.neural.learning_rates import Schedule
from fedrec.neural.server_optimizer import ServerOptimizer

Deltas = list[dict[str, np.ndarray]]


def shared_of(rng: np.random.Generator) -> State:
    return {
        "table": rng.normal(size=(5, 3)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
    }


def deltas_of(rng: np.random.Generator, rounds: int) -> Deltas:
    """Mean deltas, float64, some coordinates untouched in some rounds."""
    touched = rng.random((rounds, 5)) < 0.7
    return [
        {"table": rng.normal(size=(5, 3)) * t[:, None] * 0.1, "bias": rng.normal(size=5) * t * 0.1}
        for t in touched
    ]


def run(optimizer: ServerOptimizer, shared: State, deltas: Deltas) -> tuple[State, State]:
    server = optimizer.init(shared)
    for delta in deltas:
        shared, server = optimizer.apply(shared, server, delta)
    return shared, server


@given(seed=seeds, rounds=st.integers(1, 5))
@quick
def test_sgd_with_rate_one_adds_the_mean(seed: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    shared, deltas = shared_of(rng), deltas_of(rng, rounds)
    after, server = run(ServerOptimizer(name="sgd", learning_rate=1.0), shared, deltas)
    assert server == {}
    for name, values in after.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, shared[name] + sum(d[name] for d in deltas), rtol=1e-5, atol=1e-6)


@given(seed=seeds, rounds=st.integers(1, 8), momentum=st.floats(0.0, 0.99), rate=st.floats(0.01, 1.0))
@quick
def test_momentum_is_the_stated_recursion(seed: int, rounds: int, momentum: float, rate: float) -> None:
    rng = np.random.default_rng(seed)
    shared, deltas = shared_of(rng), deltas_of(rng, rounds)
    optimizer = ServerOptimizer(name="momentum", learning_rate=rate, momentum=momentum)
    after, _ = run(optimizer, shared, deltas)
    for name, values in after.items():
        x, m = shared[name].astype(np.float64), np.zeros(shared[name].shape)
        for delta in deltas:
            m = momentum * m + delta[name]
            x = x + rate * m
        np.testing.assert_allclose(values, x, rtol=1e-5, atol=1e-5)


@given(
    seed=seeds,
    rounds=st.integers(1, 12),
    rate=st.floats(1e-3, 0.5),
    betas=st.tuples(st.floats(0.0, 0.95), st.floats(0.5, 0.999)),
)
@quick
def test_adam_is_that_of_torch(seed: int, rounds: int, rate: float, betas: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    shared, deltas = shared_of(rng), deltas_of(rng, rounds)
    optimizer = ServerOptimizer(
        name="adam", learning_rate=rate, momentum=betas[0], second_moment=betas[1], epsilon=1e-4
    )
    after, _ = run(optimizer, shared, deltas)
    peers = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in shared.items()}
    adam = torch.optim.Adam(peers.values(), lr=rate, betas=betas, eps=1e-4)
    for delta in deltas:
        for name, peer in peers.items():
            peer.grad = torch.from_numpy(-delta[name])
        adam.step()
    for name, values in after.items():
        np.testing.assert_allclose(values, peers[name].detach().numpy(), rtol=1e-4, atol=1e-4)


@given(seed=seeds, rounds=st.integers(1, 12), rate=st.floats(1e-3, 0.5))
@quick
def test_adagrad_without_momentum_is_that_of_torch(seed: int, rounds: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    shared, deltas = shared_of(rng), deltas_of(rng, rounds)
    optimizer = ServerOptimizer(name="adagrad", learning_rate=rate, momentum=0.0, epsilon=1e-4)
    after, _ = run(optimizer, shared, deltas)
    peers = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in shared.items()}
    adagrad = torch.optim.Adagrad(peers.values(), lr=rate, eps=1e-4)
    for delta in deltas:
        for name, peer in peers.items():
            peer.grad = torch.from_numpy(-delta[name])
        adagrad.step()
    for name, values in after.items():
        np.testing.assert_allclose(values, peers[name].detach().numpy(), rtol=1e-4, atol=1e-4)


@given(seed=seeds, rounds=st.integers(1, 12))
@quick
def test_yogi_is_the_stated_recursion(seed: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    shared, deltas = shared_of(rng), deltas_of(rng, rounds)
    optimizer = ServerOptimizer(name="yogi", learning_rate=0.1, momentum=0.8, second_moment=0.9, epsilon=1e-3)
    after, _ = run(optimizer, shared, deltas)
    for name, values in after.items():
        x, m, v = shared[name].astype(np.float64), 0.0, 0.0
        for t, delta in enumerate(deltas, 1):
            d = delta[name]
            m = 0.8 * m + 0.2 * d
            v = v - 0.1 * d**2 * np.sign(v - d**2)
            x = x + 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
        np.testing.assert_allclose(values, x, rtol=1e-4, atol=1e-4)


def test_yogi_forgets_large_deltas_more_slowly_than_adam() -> None:
    """After one large delta and many small ones Adam's steps have grown again, Yogi's much less."""
    shared = {"x": np.zeros(1, dtype=np.float32)}
    deltas = [{"x": np.ones(1)}] + [{"x": np.full(1, 0.01)}] * 300
    moved = {}
    for name in ("adam", "yogi"):
        optimizer = ServerOptimizer(name=name, momentum=0.0, second_moment=0.9)
        late, _ = run(optimizer, shared, deltas[:300])
        last, _ = run(optimizer, shared, deltas)
        moved[name] = float((last["x"] - late["x"])[0])
    assert moved["adam"] > 10 * moved["yogi"] > 0


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "adam", "yogi"])
def test_a_schedule_is_other_rates_step_by_step(name: str) -> None:
    """The step count lies in the server's state, so a resumed coordinator goes on with the same rates."""
    rng = np.random.default_rng(4)
    shared, deltas = shared_of(rng), deltas_of(rng, 8)
    schedule = Schedule(kind="cosine", warm_up=3, horizon=7, floor=0.1)
    whole, _ = run(ServerOptimizer(name=name, learning_rate=0.2, schedule=schedule), shared, deltas)
    server = ServerOptimizer(name=name, learning_rate=0.2, schedule=schedule).init(shared)
    for number, delta in enumerate(deltas, 1):
        rate = 0.2 * schedule.factor(number)
        optimizer = ServerOptimizer(name=name, learning_rate=rate)
        step = {"step": server["step"] + 1}
        shared, after = optimizer.apply(shared, server, delta)
        server = after | step
    for n, values in whole.items():
        np.testing.assert_allclose(values, shared[n], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "adam", "yogi"])
def test_a_step_depends_on_state_alone_and_leaves_its_inputs(name: str) -> None:
    """What a resumed coordinator has (shared and server state) is all that the next step needs."""
    rng = np.random.default_rng(3)
    shared, deltas = shared_of(rng), deltas_of(rng, 6)
    optimizer = ServerOptimizer(name=name, learning_rate=0.1)
    whole, _ = run(optimizer, shared, deltas)
    first, server = run(optimizer, shared, deltas[:3])
    before = {n: a.copy() for n, a in {**first, **server}.items()}
    for delta in deltas[3:]:
        for n, a in {**first, **server}.items():
            np.testing.assert_array_equal(a, before[n])
        first, server = optimizer.apply(first, server, delta)
        before = {n: a.copy() for n, a in {**first, **server}.items()}
    for n, values in whole.items():
        np.testing.assert_array_equal(first[n], values)


def test_a_coordinate_that_no_one_touched_stays() -> None:
    shared = shared_of(np.random.default_rng(0))
    delta = {"table": np.zeros((5, 3)), "bias": np.zeros(5)}
    for name in ("sgd", "momentum", "adagrad", "adam", "yogi"):
        after, _ = run(ServerOptimizer(name=name), shared, [delta] * 3)
        for n, values in after.items():
            np.testing.assert_array_equal(values, shared[n])


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"name": "adamax"}, {"lr": 0.1}, {"epsilon": 0.0}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerOptimizer(**wrong)
