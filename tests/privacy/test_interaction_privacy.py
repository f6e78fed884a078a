"""Interaction-level privacy on the device: equal to dense DP-SGD, no telling touched rows, no wrong gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from properties import quick, seeds
from scipy.stats import chi2, ncx2
from test_norm_check import Head
from torch import Tensor, nn

from fedrec.core.errors import PrivacyRefused, ProtocolError
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.neural.example_gradients import uniform_rows
from fedrec.privacy import _example_gradients as example_gradients
from fedrec.privacy import interaction
from fedrec.privacy.interaction import released_noise_std, train_interactions, user_epsilon
from fedrec.privacy.noise import SNAP_BITS, NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import InteractionPlan
from fedrec.recommenders.closed_form.popularity import Popularity, PopularityConfig
from fedrec.recommenders.collaborative.mf import MatrixFactorisation, MfConfig

KEY = RoundSeed(5, 1)
D, NEGATIVES = 4, 3


def model(loss: str = "bce", learning_rate: float = 0.7) -> MatrixFactorisation:
    return MatrixFactorisation(
        MfConfig(
            embedding_size=D,
            negatives=NEGATIVES,
            loss=loss,
            learning_rate=learning_rate,
            init_scale=2.0,
            reg=0.1,
        )
    )


def plan_of(
    z: float = 1.0, clip_norm: float = 0.5, steps: int = 4, rate: float = 0.4, most: int = 50
) -> PrivacyPlan:
    limits = InteractionPlan(local_steps=steps, batch_rate=rate, max_interactions=most, expected_batch=6.0)
    built = PrivacyPlan(
        unit="interaction",
        trust="local",
        adjacency="zero-out",
        target_epsilon=8.0,
        delta=1e-5,
        population=1000,
        sampling="everyone",
        sampling_rate=1.0,
        rounds=1,
        clip_norm=clip_norm,
        noise_multipliers=(1.0,),
        accountant="pld",
        parameters=100,
        adaptive=None,
        distributed=None,
        interaction=limits,
    )
    return built.model_copy(update={"noise_multipliers": (z,)})


def histories(*items: list[int]) -> UserBatch:
    indptr = np.concatenate([[0], np.cumsum([len(i) for i in items])]).astype(np.int64)
    flat = np.array([i for each in items for i in each], dtype=np.int64)
    return UserBatch(np.arange(len(items)) + 7, indptr, flat, np.ones(len(flat), dtype=np.float32))


@dataclass(frozen=True)
class Outcome:
    blocks: State
    local: State
    noise_std: float

    @property
    def vector(self) -> np.ndarray:
        """Everything that one interaction can have moved."""
        return np.concatenate([np.ravel(v) for v in (*self.blocks.values(), *self.local.values())])


def train(
    recommender: MatrixFactorisation,
    batch: UserBatch,
    plan: PrivacyPlan,
    noise: NoiseSource,
    n_items: int,
    change: Callable[[State, State], None] = lambda shared, local: None,
) -> Outcome:
    """Deltas of the tables and of the user vectors after one round."""
    shared = recommender.init_shared(n_items, 1)
    local = {name: a.astype(np.float64) for name, a in recommender.init_local(batch.user, 1).items()}
    change(shared, local)
    total, after = train_interactions(recommender, shared, local, batch, KEY, plan, noise, n_items)
    assert total.users == len(batch)
    moved = {name: after[name] - values for name, values in local.items()}
    return Outcome(total.blocks, moved, total.noise_std)


# --- The same as dense DP-SGD ------------------------------------------------------------------------------------


class Recorder(NoiseSource):
    """Keeps every draw, in order."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.coins: list[np.ndarray] = []
        self.draws: list[np.ndarray] = []

    def derive(self, *labels: str | int) -> Recorder:
        return self

    def bernoulli(self, p: float, size: int) -> np.ndarray:
        self.coins.append(super().bernoulli(p, size))
        return self.coins[-1]

    def normal(self, size: int, std: float) -> np.ndarray:
        self.draws.append(super().normal(size, std))
        return self.draws[-1]


def dense_noise(
    recorder: Recorder, examples: list[np.ndarray], n_items: int, std: float
) -> tuple[np.ndarray, np.ndarray]:
    """[T, I, d+1] and [T, d]: the recorded draws as noise of every row in every step.

    What was drawn late, for k steps at once, is put into the last of these steps; no example reads the row between.
    """
    draws, steps = iter(recorder.draws), len(examples)
    table, user, done = np.zeros((steps, n_items, D + 1)), np.zeros((steps, D)), np.zeros(n_items, dtype=int)
    for step, each in enumerate(examples):
        here = np.unique(each)
        behind = here[done[here] < step]
        weight = np.sqrt(step - done[behind])[:, None] * std
        table[step - 1, behind, :D] = next(draws).reshape(-1, D) * weight
        table[step - 1, behind, D:] = next(draws).reshape(-1, 1) * weight
        done[here] = step
        user[step] = next(draws)
    weight = np.sqrt(steps - done)[:, None] * std
    table[-1, :, :D] += next(draws).reshape(-1, D) * weight
    table[-1, :, D:] += next(draws).reshape(-1, 1) * weight
    assert next(draws, None) is None
    return table, user


def dense_step(
    table: np.ndarray, user: np.ndarray, examples: np.ndarray, clip_norm: float, reg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the clipped gradients of binary cross-entropy, by hand: of table and bias [I, d+1], of the user [d]."""
    table_sum, user_sum = np.zeros_like(table), np.zeros_like(user)
    for rows in examples:
        score = table[rows, :D] @ user + table[rows, D]
        slope = 1 / (1 + np.exp(-score)) - (np.arange(len(rows)) == 0)
        of_table, of_user = np.zeros_like(table), slope @ table[rows, :D] + reg * user
        np.add.at(of_table, rows, slope[:, None] * np.append(user, 1.0))
        norm = np.sqrt(np.square(of_table).sum() + np.square(of_user).sum())
        scale = min(1.0, clip_norm / (norm + 1e-6))
        table_sum, user_sum = table_sum + scale * of_table, user_sum + scale * of_user
    return table_sum, user_sum


@pytest.mark.parametrize("micro_batch", [2, 32])
@pytest.mark.parametrize("z", [0.0, 1.3])
def test_lazy_noise_is_dense_dp_sgd_with_the_same_noise(
    z: float, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interaction, "MICRO_BATCH", micro_batch)
    mf, n_items, plan, batch = model(), 30, plan_of(z, steps=6), histories([3, 9, 27, 0, 14, 8, 29])
    recorder = Recorder(3)
    out = train(mf, batch, plan, recorder, n_items)

    joins = recorder.coins[0].reshape(6, -1)
    examples = [uniform_rows(batch.item[c], 7, t, KEY, n_items, NEGATIVES) for t, c in enumerate(joins)]
    assert any(len(np.unique(e)) < 30 for e in examples) and len({len(e) for e in examples}) > 1
    step = 0.7 / 6.0
    noise, user_noise = dense_noise(recorder, examples, n_items, step * z * 0.5)
    shared = mf.init_shared(n_items, 1)
    start = np.column_stack([shared["item_table"], shared["item_bias"]]).astype(np.float64)
    first = mf.init_local(batch.user, 1)["user_vector"][0].astype(np.float64)
    table, user = start.copy(), first.copy()
    for t in range(6):
        of_table, of_user = dense_step(table, user, examples[t], 0.5, 0.1)
        table, user = table - step * of_table + noise[t], user - step * of_user + user_noise[t]
    near = {"rtol": 0, "atol": 1e-12 + 2.0**-SNAP_BITS * out.noise_std}
    np.testing.assert_allclose(out.blocks["item_table"], (table - start)[:, :D], **near)
    np.testing.assert_allclose(out.blocks["item_bias"], (table - start)[:, D], **near)
    np.testing.assert_allclose(out.local["user_vector"][0], user - first, **near)
    assert np.abs(table - start).max() > 0.01


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_without_noise_it_is_opacus_on_the_whole_table(loss: str) -> None:
    mf, n_items, batch = model(loss), 20, histories([3, 9, 17, 0, 14])
    out = train(mf, batch, plan_of(0.0, rate=1.0, steps=3), NoiseSource(1), n_items)
    shared, local = mf.init_shared(n_items, 1), mf.init_local(batch.user, 1)
    module = GradSampleModule(mf.device_module(shared, local), loss_reduction="sum")
    sgd = torch.optim.SGD(module.parameters(), lr=0.7)
    optimizer = DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=6)
    for step in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(uniform_rows(batch.item, 7, step, KEY, n_items, NEGATIVES))).sum().backward()
        optimizer.step()
    rows, user = mf.device_gradients(module._module, "data")
    for name, values in rows.items():
        np.testing.assert_allclose(out.blocks[name], values - shared[name], atol=1e-12)
    np.testing.assert_allclose(
        out.local["user_vector"], user["user_vector"] - local["user_vector"], atol=1e-12
    )


# --- Noise: where, how much, and what it hides -------------------------------------------------------------------


def test_every_value_carries_the_same_noise() -> None:
    n_items, plan = 600, plan_of(z=200.0, steps=5)
    batch = histories(list(range(0, 60)), list(range(30, 120)), [])
    out = train(model(), batch, plan, NoiseSource(2), n_items)
    assert out.noise_std == pytest.approx(released_noise_std(plan, 1, 0.7, users=3))
    assert out.noise_std == pytest.approx(0.7 / 6.0 * 200.0 * 0.5 * np.sqrt(3 * 5))
    own = np.isin(np.arange(n_items), batch.item)
    for part in (out.blocks["item_table"][own], out.blocks["item_table"][~own], out.blocks["item_bias"]):
        assert part.std() == pytest.approx(out.noise_std, rel=0.12)
        assert abs(part.mean()) < 5 * out.noise_std / np.sqrt(part.size)
    moved = np.concatenate(
        [train(model(), batch, plan, NoiseSource(s), 130).local["user_vector"] for s in range(20)]
    )
    assert moved.std() == pytest.approx(released_noise_std(plan, 1, 0.7), rel=0.12)


def test_users_without_examples_send_the_same_noise() -> None:
    for plan, batch in ((plan_of(), histories([])), (plan_of(rate=1e-12), histories([1, 2, 3]))):
        out = train(model(), batch, plan, NoiseSource(4), 300)
        assert out.blocks["item_table"].std() == pytest.approx(out.noise_std, rel=0.08)
        assert (out.vector != 0).all()


def test_all_values_lie_on_one_grid() -> None:
    out = train(model(), histories([1, 2, 3, 4, 5, 6]), plan_of(rate=1.0), NoiseSource(4), 40)
    grid = 2.0 ** (np.frexp(out.noise_std)[1] - 1 - SNAP_BITS)
    for values in out.blocks.values():
        np.testing.assert_array_equal(values, np.rint(values / grid) * grid)


def test_large_broadcast_values_do_not_mark_touched_rows() -> None:
    """A delta taken as a difference of tables would be a multiple of the last digit of 1e12, about 1e-4."""

    def enlarge(shared: State, local: State) -> None:
        shared["item_table"][:] = 1e12

    out = train(model(), histories([1, 2]), plan_of(z=0.01, rate=1.0), NoiseSource(4), 10, enlarge)
    digit = np.spacing(1e12)
    assert (
        np.abs(out.blocks["item_table"] / digit - np.rint(out.blocks["item_table"] / digit)) > 1e-9
    ).mean() > 0.9


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    order = np.argsort(np.argsort(np.concatenate([positive, negative])))
    return float(
        (order[: len(positive)].sum() - len(positive) * (len(positive) - 1) / 2)
        / (len(positive) * len(negative))
    )


@pytest.mark.parametrize("z", [0.25, 1.0])
def test_touched_rows_are_hidden_as_well_as_theory_says(z: float) -> None:
    """The best guess from a row's norm: non-central against central chi-square, the clean step known exactly."""
    touched, untouched, theory, quantiles = [], [], [], (np.arange(400) + 0.5) / 400
    for seed in range(40):
        batch = histories(np.random.default_rng(seed).choice(150, 12, replace=False).tolist())
        clean = train(model(), batch, plan_of(0.0, steps=1), NoiseSource(seed), 150).blocks["item_table"]
        noised = train(model(), batch, plan_of(z, steps=1), NoiseSource(seed), 150)
        score = np.square(noised.blocks["item_table"] / noised.noise_std).sum(1)
        signal = np.square(clean / noised.noise_std).sum(1)
        touched.append(score[signal > 0])
        untouched.append(score[signal == 0])
        theory += [ncx2.sf(chi2.ppf(quantiles, D), D, strength).mean() for strength in signal[signal > 0]]
    expected = float(np.mean(theory))
    assert auc(np.concatenate(touched), np.concatenate(untouched)) == pytest.approx(expected, abs=0.03)
    assert expected < (0.62 if z == 1.0 else 0.95)


def test_secret_noise_is_not_repeated_and_seeded_noise_is() -> None:
    batch, plan = histories([1, 2, 3]), plan_of()
    runs = [train(model(), batch, plan, NoiseSource(s), 20).vector for s in (None, None, 9, 9)]
    assert (runs[0] != runs[1]).all()
    np.testing.assert_array_equal(runs[2], runs[3])


# --- What one interaction can do ---------------------------------------------------------------------------------


@quick
@given(seeds)
def test_one_interaction_moves_the_clean_sum_by_at_most_the_clip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = rng.choice(15, int(rng.integers(1, 8)), replace=bool(rng.integers(2))).tolist()
    plan, gone = plan_of(0.0, clip_norm=0.3, steps=1, rate=1.0), int(rng.integers(len(items)))

    def scale(shared: State, local: State) -> None:
        shared["item_table"] *= 30.0

    whole = train(model(), histories(items), plan, NoiseSource(1), 15, scale)
    less = train(model(), histories(items[:gone] + items[gone + 1 :]), plan, NoiseSource(1), 15, scale)
    moved = float(np.linalg.norm(whole.vector - less.vector)) / (0.7 / 6.0)
    assert moved <= 0.3 * (1 + 1e-9)
    assert moved > 0.1


@given(seeds, st.integers(1, 9), st.integers(1, 40))
def test_examples_depend_on_their_own_item_only(seed: int, n: int, n_items: int) -> None:
    rng = np.random.default_rng(seed)
    items = rng.integers(0, n_items, n)
    together = uniform_rows(items, 3, 2, KEY, n_items, NEGATIVES)
    alone = [uniform_rows(items[k : k + 1], 3, 2, KEY, n_items, NEGATIVES) for k in range(n)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert together.min() >= 0 and together.max() < n_items
    np.testing.assert_array_equal(together[:, 0], items)


def test_negatives_are_uniform_and_new_in_every_step() -> None:
    items, n_items = np.arange(10), 10
    drawn = np.concatenate([uniform_rows(items, 0, t, KEY, n_items, 20)[:, 1:] for t in range(50)])
    counts = np.bincount(drawn.ravel(), minlength=n_items)
    assert chi2.sf(np.square(counts - 1000).sum() / 1000, n_items - 1) > 1e-3
    own = (drawn == np.tile(items, 50)[:, None]).mean()
    assert own == pytest.approx(0.1, abs=0.02)
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def test_only_the_newest_interactions_are_used() -> None:
    recent = [4, 2, 11]
    short = train(model(), histories(recent), plan_of(), NoiseSource(1), 20)
    long = train(model(), histories([1, 5, 6, *recent]), plan_of(most=3), NoiseSource(1), 20)
    np.testing.assert_array_equal(short.vector, long.vector)


def test_examples_that_are_not_finite_count_as_nothing() -> None:
    def spoil(shared: State, local: State) -> None:
        local["user_vector"][0] = np.nan

    plan = plan_of(rate=1.0)
    spoilt = train(model(), histories([1, 2, 3]), plan, NoiseSource(1), 200, spoil)
    assert np.isfinite(spoilt.blocks["item_table"]).all()
    assert spoilt.blocks["item_table"].std() == pytest.approx(spoilt.noise_std, rel=0.1)


def test_gradients_are_held_for_the_rows_of_a_few_examples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    original = example_gradients.sum_clipped

    def watched(module: nn.Module, slots: Tensor, clip_norm: float) -> None:
        original(module, slots, clip_norm)
        widths.extend(p.grad_sample.numel() for p in module.parameters())

    monkeypatch.setattr(example_gradients, "sum_clipped", watched)
    train(model(), histories(list(range(300))), plan_of(rate=1.0, steps=1, most=300), NoiseSource(1), 5000)
    few = interaction.MICRO_BATCH
    assert len(widths) == 3 * -(-300 // few)
    assert max(widths) <= few * (few * (1 + NEGATIVES)) * D


# --- Refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_protected_is_refused() -> None:
    batch, noise, shared, local = histories([1]), NoiseSource(1), model().init_shared(5, 1), {}
    other = Popularity(PopularityConfig())
    with pytest.raises(PrivacyRefused, match=r"'popularity'.*expected one that has"):
        train_interactions(other, shared, local, batch, KEY, plan_of(), noise, 5)
    user_level = plan_of().model_copy(update={"unit": "user", "interaction": None})
    with pytest.raises(PrivacyRefused, match="unit 'user'"):
        train(model(), batch, user_level, noise, 5)
    with pytest.raises(ProtocolError, match="item_table"):
        train(model(), batch, plan_of(), noise, 5, lambda shared, _: shared["item_table"].fill(np.inf))


def test_the_self_test_runs_once_for_a_model_and_before_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mf, calls = model(), []
    monkeypatch.setattr(
        "fedrec.privacy._norm_check.check_per_sample_norms", lambda *args: calls.append(len(args))
    )
    for _ in range(2):
        train(mf, histories([1, 2]), plan_of(), NoiseSource(1), 9)
    assert calls == [3]

    class Broken(MatrixFactorisation):
        def device_module(self, rows: State, local: State) -> nn.Module:
            return Head(3)

    monkeypatch.undo()
    with pytest.raises(PrivacyRefused, match="per-example gradients"):
        train(Broken(model().config), histories([1, 2]), plan_of(), NoiseSource(1), 9)


def test_torch_is_imported_when_it_is_needed_only() -> None:
    names = "sys, fedrec.privacy.interaction, fedrec.recommenders.collaborative.mf"
    code = f"import {names}; sys.exit(any(m in sys.modules for m in ('torch', 'opacus')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_user_epsilon_is_far_above_the_plan() -> None:
    plan = plan_of(z=2.0, steps=5, rate=0.2, most=20)
    many = plan.model_copy(update={"interaction": replace_limit(plan, 100)})
    assert 5 * plan.epsilon() < user_epsilon(plan) < user_epsilon(many)
    assert user_epsilon(plan, rounds=0) == 0.0


def replace_limit(plan: PrivacyPlan, most: int) -> InteractionPlan:
    assert plan.interaction is not None
    return plan.interaction.model_copy(update={"max_interactions": most})
