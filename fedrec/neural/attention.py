"""A transformer block on parameters that every user has an own copy of.

Vaswani et al. 2017 (NeurIPS); layer normalisation in front (Xiong et al. 2020, ICML).

Letters: K users, L positions, d width, H heads. Every parameter is [K, ...].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.neural.recommender import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params


def norm_parameters(name: str, width: int) -> dict[str, Parameter]:
    """Scale and shift of a layer normalisation."""
    return {f"{name}/scale": Parameter((width,), fill=1.0), f"{name}/shift": Parameter((width,))}


def linear_parameters(name: str, inputs: int, outputs: int) -> dict[str, Parameter]:
    """Weight and bias; variance 1 / inputs (LeCun et al. 1998)."""
    return {
        f"{name}/weight": Parameter((inputs, outputs), inputs**-0.5),
        f"{name}/bias": Parameter((outputs,)),
    }


def block_parameters(name: str, width: int) -> dict[str, Parameter]:
    """Of `attention_block`."""
    return (
        norm_parameters(f"{name}/norm1", width)
        | linear_parameters(f"{name}/qkv", width, 3 * width)
        | linear_parameters(f"{name}/out", width, width)
        | norm_parameters(f"{name}/norm2", width)
        | linear_parameters(f"{name}/up", width, width)
        | linear_parameters(f"{name}/down", width, width)
    )


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """[K, L, out] x [K, L, in] times each user's weight, plus its bias."""
    import torch

    return torch.baddbmm(params[f"{name}/bias"].unsqueeze(1), x, params[f"{name}/weight"])


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """[K, L, d] each position scaled to mean 0 and variance 1, then by the user's scale and shift."""
    from torch.nn.functional import layer_norm as normalise

    plain = normalise(x, x.shape[-1:])
    return plain * params[f"{name}/scale"].unsqueeze(1) + params[f"{name}/shift"].unsqueeze(1)


def causal(real: Tensor) -> Tensor:
    """[K, L, L] who may look at whom: events at themselves and at earlier ones; padding at itself alone."""
    import torch

    length = real.shape[1]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    itself = torch.eye(length, dtype=torch.bool)
    return (past & (real > 0).unsqueeze(1)) | itself


def everywhere(real: Tensor) -> Tensor:
    """[K, L, L] events look at all events; padding at itself, too."""
    import torch

    itself = torch.eye(real.shape[1], dtype=torch.bool)
    return (real > 0).unsqueeze(1).expand(-1, real.shape[1], -1) | itself


def attention_block(
    params: Params, name: str, x: Tensor, allowed: Tensor, heads: int, masks: Tensor | None
) -> Tensor:
    """[K, L, d] x plus attention, plus a feed-forward layer; `masks` [2, K, L, d] drop what is added."""
    from torch.nn.functional import gelu, scaled_dot_product_attention

    k, length, width = x.shape
    qkv = linear(params, f"{name}/qkv", layer_norm(params, f"{name}/norm1", x))
    q, key, value = qkv.view(k, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    seen = scaled_dot_product_attention(q, key, value, attn_mask=allowed.unsqueeze(1))
    added = linear(params, f"{name}/out", seen.transpose(1, 2).reshape(k, length, width))
    x = x + (added if masks is None else added * masks[0])
    inner = gelu(linear(params, f"{name}/up", layer_norm(params, f"{name}/norm2", x)), approximate="tanh")
    added = linear(params, f"{name}/down", inner)
    return x + (added if masks is None else added * masks[1])
