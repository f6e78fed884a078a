"""Six ways in which private training goes wrong, planted into the real code so that the audit can be audited.

Each is a context manager that replaces a method and puts it back at the end.
For tests and for `fedrec privacy audit --inject`: nothing else imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.stage import VECTOR, RoundContext, UserUpdates
from fedrec.core.updates import State, Updates, UpdateSum
from fedrec.privacy.clipping import Clip
from fedrec.privacy.mechanism import replaced
from fedrec.privacy.mechanisms.central import Central
from fedrec.privacy.mechanisms.distributed import Distributed
from fedrec.privacy.mechanisms.local import Local
from fedrec.privacy.noise import NoiseSource

#: One seed for all sources: what "the same seed" means.
_SEED = 20_240_229


def inject(name: str) -> AbstractContextManager[None]:
    """Plant one of `BUGS` for as long as the context lasts."""
    return BUGS[name]()


@contextmanager
def noise_tenth() -> Iterator[None]:
    """A tenth of the noise."""
    normal, skellam = NoiseSource.normal, NoiseSource.skellam
    with ExitStack() as stack:
        stack.enter_context(_method(NoiseSource, "normal", lambda s, size, std: normal(s, size, std / 10)))
        stack.enter_context(
            _method(NoiseSource, "skellam", lambda s, size, variance: skellam(s, size, variance / 100))
        )
        yield


@contextmanager
def no_clip() -> Iterator[None]:
    """Updates are added as they are."""
    real = Clip.on_user

    def on_user(self: Clip, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        return real(Clip(None), updates, context, state)

    with _method(Clip, "on_user", on_user):
        yield


@contextmanager
def per_block_clip() -> Iterator[None]:
    """Every block is clipped to C by itself, so that B blocks together reach C sqrt(B)."""
    real = Clip.on_user

    def on_user(self: Clip, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        whole, blocks = updates.updates, {}
        for name, block in whole.blocks.items():
            alone = replace(updates, updates=Updates({name: block}, whole.n_users))
            blocks[name] = _Weighted(block, real(self, alone, context, state).scale)
        return replace(updates, updates=replace(whole, blocks=blocks))

    with _method(Clip, "on_user", on_user):
        yield


@contextmanager
def weights_by_examples() -> Iterator[None]:
    """Federated averaging's weights: a user counts by the number of examples, relative to the others."""
    real = Clip.on_user

    def on_user(self: Clip, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        clipped, examples = real(self, updates, context, state), updates.updates.examples
        if not len(examples) or not examples.any():
            return clipped
        return replace(clipped, scale=clipped.scale * examples / np.median(examples[examples > 0]))

    with _method(Clip, "on_user", on_user):
        yield


@contextmanager
def reused_seed() -> Iterator[None]:
    """Every source of noise starts from the same seed, in each round and on each device."""
    with _method(NoiseSource, "derive", lambda source, *labels: NoiseSource(_SEED)):
        yield


@contextmanager
def skipped_empty_round() -> Iterator[None]:
    """Where there is nothing to hide, there is no noise: a sum over no users, a contribution of zero."""
    server, clean = Central.noised, np.zeros

    def noised(self: Central, vector: NDArray[Any], *rest: Any) -> tuple[NDArray[Any], State]:
        return server(self, vector, *rest) if np.any(vector) else (clean(len(vector)), {})

    with ExitStack() as stack:
        stack.enter_context(_method(Central, "noised", noised))
        for kind in (Distributed, Local):
            stack.enter_context(_method(kind, "on_node", _unless_zero(kind.on_node)))
        yield


BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "noise/10": noise_tenth,
    "no clip": no_clip,
    "per-block clip": per_block_clip,
    "weights by example count": weights_by_examples,
    "reused seed": reused_seed,
    "skipped empty round": skipped_empty_round,
}


class _Weighted:
    """A block with weights of its own: they come after the clipping."""

    def __init__(self, block: Any, weights: NDArray[np.float64]) -> None:
        self._block, self._weights = block, weights

    def squared_norms(self) -> NDArray[np.float64]:
        return np.asarray(self._block.squared_norms())

    def add_into(self, total: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        self._block.add_into(total, scale * self._weights)


def _unless_zero(real: Callable[..., Any]) -> Callable[..., Any]:
    def maybe(self: Any, total: UpdateSum, context: RoundContext) -> UpdateSum:
        vector = total.blocks[VECTOR]
        return real(self, total, context) if np.any(vector) else replaced(total, self.zero(len(vector)))

    return maybe


@contextmanager
def _method(kind: type, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    original = getattr(kind, name)
    setattr(kind, name, replacement)
    try:
        yield
    finally:
        setattr(kind, name, original)
