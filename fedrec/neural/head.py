"""A personal head: a linear layer between the hidden state and the catalogue that begins as the identity.

h becomes h + h A + s with A [d, d] and s [d] of the user's own, both zero at first: A turns a taste, s is one.
Letters: K users, L positions, d embedding size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.neural.recommender import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params

TURN, SHIFT = "head/turn", "head/shift"


def head_parameters(size: int) -> dict[str, Parameter]:
    """A head over hidden states of `size` values."""
    return {
        TURN: Parameter((size, size), where="local"),
        SHIFT: Parameter((size,), where="local"),
    }


def with_head(params: Params, h: Tensor) -> Tensor:
    """[K, L, d] through the head, if there is one among the parameters."""
    if TURN not in params:
        return h
    return h + h @ params[TURN] + params[SHIFT].unsqueeze(1)
