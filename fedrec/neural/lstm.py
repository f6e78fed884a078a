"""A long short-term memory on parameters that every user has an own copy of (Hochreiter and Schmidhuber 1997).

Letters: K users, L positions, d width. Every parameter is [K, ...].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.neural.attention import linear, linear_parameters
from fedrec.neural.recommender import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params


def lstm_parameters(name: str, width: int) -> dict[str, Parameter]:
    """Of `lstm`: what is read and what is remembered, for the four gates at once."""
    remembered = {f"{name}/remember": Parameter((width, 4 * width), width**-0.5)}
    return linear_parameters(f"{name}/read", width, 4 * width) | remembered


def lstm(params: Params, name: str, x: Tensor, real: Tensor) -> Tensor:
    """[K, L, d] hidden states of x [K, L, d]; where `real` [K, L] is 0 the state stays as it is."""
    import torch

    read = linear(params, f"{name}/read", x)
    hidden = cell = torch.zeros_like(x[:, 0])
    states = []
    for t in range(x.shape[1]):
        gates = read[:, t] + torch.bmm(hidden.unsqueeze(1), params[f"{name}/remember"]).squeeze(1)
        enter, forget, show, value = gates.chunk(4, dim=1)
        here = real[:, t : t + 1]
        # Begins by remembering: a forget gate that starts half closed loses the past (Gers et al. 2000).
        kept = torch.sigmoid(forget + 1.0) * cell + torch.sigmoid(enter) * torch.tanh(value)
        cell = here * kept + (1.0 - here) * cell
        hidden = here * torch.sigmoid(show) * torch.tanh(cell) + (1.0 - here) * hidden
        states.append(hidden)
    return torch.stack(states, dim=1)
