"""What interaction-level privacy costs on a device: ours beside Opacus on the whole item table.

    python -m benchmarks.interaction_privacy

Setting: MF with d = 64, 4 negatives, one client with 165 positives, one pass (5 steps, every interaction joins each
with probability 1/5), clip 1, noise multiplier 1. Every method ends with the noised change of the whole table. CPU
milliseconds are user plus system time, one thread, the best of the repeats; memory is the peak of a process of its
own over what it had before, so every method is measured in a fresh one. Opacus' hooks hold a gradient of the whole
table per example; at 100,000 items that is left out.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from benchmarks.workload import EMBEDDING_SIZE, LEARNING_RATE, NEGATIVES, SEED, recommender
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.privacy.interaction import train_interactions
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.settings import InteractionPlan
from fedrec.recommenders.collaborative._mf_device import MfModule
from fedrec.rounds.chain import train_users

POSITIVES, STEPS, CATALOGUES = 165, 5, (3_706, 100_000)
RATE, EXPECTED = 1 / STEPS, POSITIVES / STEPS
HOOKS_AT_MOST = 10_000
KEY = RoundSeed(SEED, 1)


@dataclass(frozen=True)
class Cost:
    """Of one client in one round."""

    cpu_milliseconds: float
    peak_mebibytes: float


def without_privacy(items: int) -> Callable[[], object]:
    model, batch = recommender(), client(items)
    shared, local = model.init_shared(items, SEED), model.init_local(batch.user, SEED)
    return lambda: train_users(model, shared, local, batch, KEY, None, items)


def ours(items: int) -> Callable[[], object]:
    model, batch = recommender(), client(items)
    shared, local = model.init_shared(items, SEED), model.init_local(batch.user, SEED)
    plan = the_plan(items)
    return lambda: train_interactions(model, shared, local, batch, KEY, plan, NoiseSource(), items)


def opacus_hooks(items: int) -> Callable[[], object]:
    def run() -> None:
        module = GradSampleModule(whole_table(items), loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.SGD(module.parameters(), LEARNING_RATE),
            noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=int(EXPECTED),
        )  # fmt: skip
        for slots in poisson_batches(items):
            optimizer.zero_grad()
            module(slots).sum().backward()
            optimizer.step()

    return run


def opacus_ghost(items: int) -> Callable[[], object]:
    def run() -> None:
        module = GradSampleModuleFastGradientClipping(
            whole_table(items), loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(module.parameters(), LEARNING_RATE / EXPECTED),
            noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=None, loss_reduction="sum",
        )  # fmt: skip
        loss = DPLossFastGradientClipping(module, optimizer, _AsIs(), loss_reduction="sum")
        for slots in poisson_batches(items):
            optimizer.zero_grad()
            loss(module(slots)).backward()
            optimizer.step()

    return run


METHODS = {
    "no privacy": without_privacy,
    "fedrec, rows in use and lazy noise": ours,
    "Opacus ghost clipping, whole table": opacus_ghost,
    "Opacus hooks, whole table": opacus_hooks,
}


class _AsIs(nn.Module):
    """The criterion of a module that gives losses itself."""

    reduction = "sum"

    def forward(self, losses: Tensor) -> Tensor:
        return losses


def client(items: int) -> UserBatch:
    """One user with 165 different items."""
    own = np.random.default_rng(SEED).choice(items, POSITIVES, replace=False).astype(np.int64)
    ends = np.array([0, POSITIVES], dtype=np.int64)
    return UserBatch(np.zeros(1, dtype=np.int64), ends, own, np.ones(POSITIVES, dtype=np.float32))


def whole_table(items: int) -> nn.Module:
    """The same module over all rows, in the single precision that Opacus is used with."""
    shared, local = (
        recommender().init_shared(items, SEED),
        recommender().init_local(np.zeros(1, np.int64), SEED),
    )
    return MfModule(shared, local, "bce", 0.01).float()


def poisson_batches(items: int) -> list[Tensor]:
    """[B, 1+n] rows of the examples of each step."""
    rng, own = np.random.default_rng(SEED), client(items).item
    batches = [own[rng.random(POSITIVES) < RATE] for _ in range(STEPS)]
    return [
        torch.from_numpy(np.column_stack([b, rng.integers(0, items, (len(b), NEGATIVES))])) for b in batches
    ]


def the_plan(items: int) -> PrivacyPlan:
    """One round at noise multiplier 1."""
    return PrivacyPlan(
        unit="interaction", trust="local", adjacency="zero-out", target_epsilon=8.0, delta=1e-5, population=6040,
        sampling="everyone", sampling_rate=1.0, rounds=1, clip_norm=1.0, noise_multipliers=(1.0,),
        accountant="pld", parameters=items * (EMBEDDING_SIZE + 1), adaptive=None, distributed=None,
        interaction=InteractionPlan(
            local_steps=STEPS, batch_rate=RATE, max_interactions=POSITIVES, expected_batch=EXPECTED
        ),
    )  # fmt: skip


def measure(method: str, items: int, repeats: int = 4) -> Cost:
    """Cost of one method, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (method, items, repeats))


def _measure(method: str, items: int, repeats: int) -> Cost:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    METHODS[method](200)()  # imports and compiles
    work, times = METHODS[method](items), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten; see proc(5)
    before = _mebibytes("VmRSS")
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return Cost(1e3 * min(times), _mebibytes("VmHWM") - before)


def _mebibytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    for items in CATALOGUES:
        print(
            f"{items:,} items x {EMBEDDING_SIZE}, {POSITIVES} positives, {NEGATIVES} negatives, {STEPS} steps\n"
        )
        print(f"{'method':36} {'CPU ms per client':>18} {'x ours':>8} {'peak MiB':>9}")
        names = [n for n in METHODS if items <= HOOKS_AT_MOST or METHODS[n] is not opacus_hooks]
        costs = {name: measure(name, items) for name in names}
        own = costs["fedrec, rows in use and lazy noise"].cpu_milliseconds
        for name, cost in costs.items():
            ratio = cost.cpu_milliseconds / own
            print(f"{name:36} {cost.cpu_milliseconds:18.1f} {ratio:8.2f} {cost.peak_mebibytes:9.0f}")
        print()


if __name__ == "__main__":
    main()
