"""The hash of `randomness` for compiled loops: the same numbers, one uint64 at a time.

Apart from `randomness`, which needs numpy alone. Simulation and training only, never privacy.
"""

from __future__ import annotations

from typing import Any

from fedrec.core.compiled import jit
from fedrec.core.randomness import GAMMA, finalise

_inlined: Any = jit(cache=True, nogil=True, inline="always")

#: uint64 -> uint64, SplitMix64's finaliser.
mix: Any = _inlined(finalise)


def _absorb(state: Any, value: Any) -> Any:
    return mix(state * GAMMA + value + GAMMA)


#: (state, value) -> the next state, as `randomness.absorb` of one number.
absorb: Any = _inlined(_absorb)
