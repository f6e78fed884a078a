"""Self-test of per-example gradients: Opacus' answer beside torch's own, on one batch of made-up examples.

Clipping bounds what one example can do only if its gradient is measured right and depends on no other example.
Opacus gets some models wrong without a word: a table used a second time through `F.linear(h, table.weight)`,
`nn.EmbeddingBag` with an id twice in a bag, losses over the batch (in-batch negatives). Here every example is
differentiated alone by `torch.func.grad`, in a batch of one, and Opacus differentiates all of them at once. If the
two differ, nothing is released. A loop instead of `vmap`, which has no rule for some layers (`nn.EmbeddingBag`).

Letters: B examples, P parameters. Out of scope: the noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad

from fedrec.core.errors import PrivacyRefused
from fedrec.core.randomness import Purpose, key, normal
from fedrec.neural.example_gradients import DeviceModel
from fedrec.privacy._example_gradients import example_gradients, wrap

#: Largest difference of an example's gradient from the truth, as a part of the batch's largest norm. Both are
#: computed in double precision: rounding stays below 1e-12, the known failures are at 1e-2 and above.
TOLERANCE = 1e-6

#: Examples of the self-test, over so few rows that every example has one twice.
TEST_EXAMPLES, TEST_ROWS = 6, 3

Loss = Callable[[Tensor], Tensor]

_VERIFIED: WeakSet[object] = WeakSet()


@dataclass(frozen=True)
class _TestKey:
    seed: int = 0
    round: int = 0


def verify_model(model: DeviceModel, n_items: int) -> None:
    """Run the self-test of the model's per-example gradients, once per model object, on made-up numbers.

    Raises:
        PrivacyRefused: they are wrong.
    """
    if model in _VERIFIED:
        return
    item = np.arange(TEST_EXAMPLES, dtype=np.int64) % n_items
    width = model.device_rows(item, 0, 0, _TestKey(), n_items).shape[1]
    blocks, own = model.layout(n_items).blocks, model.init_local(np.zeros(1, dtype=np.int64), 0)
    rows = {name: _made_up(k, (TEST_ROWS, *spec.shape[1:])) for k, (name, spec) in enumerate(blocks.items())}
    local = {name: _made_up(len(rows) + k, a.shape) for k, (name, a) in enumerate(own.items())}
    slots = np.add.outer(np.arange(TEST_EXAMPLES), np.arange(width) ** 2) % TEST_ROWS
    check_per_sample_norms(model.device_module(rows, local), lambda loss: loss, (torch.from_numpy(slots),))
    _VERIFIED.add(model)


def check_per_sample_norms(module: nn.Module, loss_fn: Loss, batch: tuple[Tensor, ...]) -> Tensor:
    """Compare per-example gradients, and with them their norms; the true norms [B].

    Args:
        module: as it will be trained; it is copied, not changed.
        loss_fn: losses [B] from the module's output.
        batch: B >= 2 examples, every tensor [B, ...]; made up, since the answer is not noised. An id should occur
            twice in one example if that can happen in training.

    Raises:
        PrivacyRefused: the two differ, the module changes itself, or one of the two cannot be computed.
    """
    for layer in module.modules():
        if getattr(layer, "max_norm", None) is not None:
            _refuse(f"{type(layer).__name__} with max_norm rescales rows in its forward pass, without noise")
    probe = copy.deepcopy(module).double()
    inputs = tuple(t.double() if t.is_floating_point() else t for t in batch)
    state = {name: value.clone() for name, value in probe.state_dict().items()}
    try:
        truth = _alone(probe, loss_fn, inputs)
        measured = _together(copy.deepcopy(probe), loss_fn, inputs)
        probe(*inputs)
    except Exception as error:  # whatever they stumble over, there is no guarantee to give
        _refuse(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")
    if any(not torch.equal(value, state[name]) for name, value in probe.state_dict().items()):
        _refuse("the forward pass changes the module's own parameters or buffers")
    _compare(truth, measured)
    norms: Tensor = truth.norm(dim=1)
    return norms


def _made_up(stream: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    base = np.array([key(0, Purpose.INIT_SHARED, stream)])
    return normal(base, math.prod(shape)).reshape(shape)


def _alone(probe: nn.Module, loss_fn: Loss, inputs: tuple[Tensor, ...]) -> Tensor:
    """[B, P] the gradient of each example in a batch of its own."""
    parameters = {name: p.detach() for name, p in probe.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], one: tuple[Tensor, ...]) -> Tensor:
        return loss_fn(functional_call(probe, values, one)).sum()

    gradients = (grad(loss)(parameters, tuple(t[b : b + 1] for t in inputs)) for b in range(len(inputs[0])))
    return torch.stack([torch.cat([g.flatten() for g in each.values()]) for each in gradients])


def _together(probe: nn.Module, loss_fn: Loss, inputs: tuple[Tensor, ...]) -> Tensor:
    """[B, P] the gradient of each example as Opacus finds it in the whole batch."""
    wrapped = wrap(probe)
    gradients = example_gradients(wrapped, loss_fn(wrapped(*inputs)))
    flat: Tensor = torch.cat([g.reshape(len(g), -1) for g in gradients], dim=1)
    return flat


def _compare(truth: Tensor, measured: Tensor) -> None:
    if truth.shape != measured.shape:
        _refuse(
            f"Opacus gives {tuple(measured.shape)} per-example gradients, torch.func {tuple(truth.shape)}"
        )
    largest = float(truth.norm(dim=1).max())
    if not largest > 0.0 or not bool(truth.isfinite().all()):
        _refuse(f"the test batch has gradients of largest norm {largest}, which shows nothing")
    error = (truth - measured).norm(dim=1)
    if not bool((error <= TOLERANCE * largest).all()):
        worst = int(error.nan_to_num(float("inf")).argmax())
        _refuse(
            f"an example's gradient has norm {float(measured[worst].norm()):.4g} by Opacus in the batch and "
            f"{float(truth[worst].norm()):.4g} alone by torch.func, apart by {float(error[worst]):.2g}"
        )


def _refuse(reason: str) -> None:
    raise PrivacyRefused(
        f"per-example gradients cannot be bounded: {reason}; expected equal ones to {TOLERANCE:g}. Use nn.Embedding "
        "calls for every use of a table, and a loss that looks at one example at a time"
    )
