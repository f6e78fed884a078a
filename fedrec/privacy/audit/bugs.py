"""Six ways in which private training goes wrong, planted into the real code so that the audit can be audited.

Each is a context manager. Functions are replaced where they are defined and in every module that imported them;
everything is put back at the end. For tests and for `fedrec privacy audit --inject`: nothing else imports this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.updates import Updates, UpdateSum
from fedrec.privacy import clipping
from fedrec.privacy.central import Central
from fedrec.privacy.distributed import Distributed
from fedrec.privacy.local_dp import Local
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
    real = clipping.add_clipped

    def add(total: UpdateSum, updates: Updates, clip_norm: float | None) -> None:
        real(total, updates, None)

    with _everywhere(real, add):
        yield


@contextmanager
def per_block_clip() -> Iterator[None]:
    """Every block is clipped to C by itself, so that B blocks together reach C sqrt(B)."""
    real = clipping.add_clipped

    def add(total: UpdateSum, updates: Updates, clip_norm: float | None) -> None:
        for name, block in updates.blocks.items():
            part = UpdateSum({name: total.blocks[name]})
            real(part, Updates({name: block}, updates.n_users), clip_norm)
        total.users += updates.n_users

    with _everywhere(real, add):
        yield


@contextmanager
def weights_by_examples() -> Iterator[None]:
    """Federated averaging's weights: a user counts by the number of examples, relative to the others."""
    real = clipping.add_clipped

    def add(total: UpdateSum, updates: Updates, clip_norm: float | None) -> None:
        examples = updates.examples
        if not len(examples) or not examples.any():
            real(total, updates, clip_norm)
            return
        weights = examples / np.median(examples[examples > 0])
        blocks = {name: _Weighted(block, weights) for name, block in updates.blocks.items()}
        weighted = Updates(blocks, updates.n_users, updates.loss, examples)
        real(total, weighted, clip_norm)

    with _everywhere(real, add):
        yield


@contextmanager
def reused_seed() -> Iterator[None]:
    """Every source of noise starts from the same seed, in each round and on each device."""
    with _method(NoiseSource, "derive", lambda source, *labels: NoiseSource(_SEED)):
        yield


@contextmanager
def skipped_empty_round() -> Iterator[None]:
    """Where there is nothing to hide, there is no noise: a sum of no one, a contribution of zero."""
    with ExitStack() as stack:
        stack.enter_context(_method(Central, "release", _unless_zero(Central.release)))
        for kind in (Distributed, Local):
            stack.enter_context(_method(kind, "contribute", _unless_zero(kind.contribute)))
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
    """A block whose norm is that of the update before its weight: weights come after the clipping."""

    def __init__(self, block: Any, weights: NDArray[np.float64]) -> None:
        self._block, self._weights = block, weights

    def squared_norms(self) -> NDArray[np.float64]:
        return np.asarray(self._block.squared_norms())

    def add_into(self, total: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        self._block.add_into(total, scale * self._weights)


def _unless_zero(real: Callable[..., Any]) -> Callable[..., Any]:
    def maybe(self: Any, vector: NDArray[Any], *rest: Any) -> NDArray[Any]:
        return real(self, vector, *rest) if np.any(vector) else np.array(self.zero(len(vector)))

    return maybe


@contextmanager
def _method(kind: type, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    original = getattr(kind, name)
    setattr(kind, name, replacement)
    try:
        yield
    finally:
        setattr(kind, name, original)


@contextmanager
def _everywhere(original: Callable[..., Any], replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace a function in every loaded module of ours that knows it."""
    holders = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.split(".")[0].startswith("fedrec")
        for name, value in list(vars(module).items())
        if value is original
    ]
    for module, name in holders:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name in holders:
            setattr(module, name, original)
