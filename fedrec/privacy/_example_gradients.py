"""Per-example gradients and their clipping, by Opacus (Yousefpour et al. 2021, arXiv 2109.12298).

Opacus does what it is good at: its hooks give each example's own gradient, its optimiser clips them and sums them
up. It draws no noise here. Its generator is seeded with 32 bits, few enough to try them all, and the noise of one
step would be drawn for every row of the table; `interaction` draws what is needed from a cryptographic source.

Letters: B examples, C clip norm. Out of scope: whether Opacus' gradients are right for a module (`norm_check`).
Importing this module imports torch and Opacus.
"""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn


def example_gradients(wrapped: GradSampleModule, loss: Tensor) -> list[Tensor]:
    """Gradients [B, *shape] of all parameters, from the losses [B] that `wrapped` gave; left in `grad_sample`, too.

    Raises:
        ValueError: a parameter got no per-example gradient.
    """
    with warnings.catch_warnings():
        # The inputs are ids, which have no gradient; the gradients of the parameters are what is wanted.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        loss.sum().backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    for parameter in parameters:
        if not isinstance(parameter.grad_sample, Tensor):
            raise ValueError("a parameter got no per-example gradient")
    return [parameter.grad_sample for parameter in parameters]


def wrap(module: nn.Module) -> GradSampleModule:
    """The module with Opacus' hooks; the loss will be summed over the examples, and buffers are refused."""
    return GradSampleModule(module, loss_reduction="sum", strict=True)


def sum_clipped(module: nn.Module, slots: Tensor, clip_norm: float) -> None:
    """Leave in `summed_grad` of each parameter the sum of the B gradients, each of L2 norm at most C.

    The norm is over all parameters together. An example whose gradient is not finite counts as zero.

    Args:
        module: gives the losses [B] of `slots`.
        slots: [B, ...] examples, B >= 1.
        clip_norm: C.
    """
    wrapped = wrap(module)
    gradients = example_gradients(wrapped, wrapped(slots))
    # A sum is finite only if every summand is, and takes a tenth of the time of looking at each.
    finite = torch.stack([g.reshape(len(g), -1).sum(1) for g in gradients]).isfinite().all(0)
    if not bool(finite.all()):
        for gradient in gradients:
            gradient[~finite] = 0.0
    clipper = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    clipper.clip_and_accumulate()
