"""How a reply becomes one vector of residues, and how a sum of them becomes a reply again.

An array named "update" is quantised, or carried as it is where it holds integers already (noise shares of a privacy
plan). All else that is to be summed, counts, losses, sums of metrics, goes into the same vector as exact numbers, so
that nothing leaves a device beside it. Arrays of whole numbers other than the update are settings that all devices
share: they are not sent. Out of scope: masks, and what the numbers mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.encoding import Encoding, encoding_for
from fedrec.secagg.terms import SecaggTerms

Arrays = Mapping[str, NDArray[Any]]
Numbers = Mapping[str, Any]
UPDATE = "update"


@dataclass(frozen=True)
class SumFormat:
    """The same on devices and server.

    Attributes:
        encoding: values and numbers to residues.
        integers: the update holds residues modulo 2^bits already.
        shared: the arrays that are settings, by name.
        shapes: of the arrays that are summed as numbers, by name, in order.
        names: of the scalars, in order.
        update: whether there is an update.
    """

    encoding: Encoding
    integers: bool
    shared: Arrays
    shapes: Mapping[str, tuple[int, ...]]
    names: tuple[str, ...]
    update: bool

    @classmethod
    def of(cls, terms: SecaggTerms, label: str, arrays: Arrays, names: Iterable[str]) -> SumFormat:
        """The format of replies that look like this one.

        Args:
            terms: of the run.
            label: names the sum within the run; the public rotation is drawn from it.
            arrays: an example, of which types and shapes count.
            names: of the scalars.

        Raises:
            AggregationRefused: there is an update of real numbers and the terms give no bound for it.
        """
        update = arrays.get(UPDATE)
        integers = update is not None and update.dtype.kind == "i"
        others = {name: arrays[name] for name in sorted(arrays) if name != UPDATE}
        shared = {name: values for name, values in others.items() if values.dtype.kind in "iu"}
        shapes = {name: values.shape for name, values in others.items() if name not in shared}
        ordered = tuple(sorted(names))
        count = len(ordered) + sum(int(np.prod(shape)) for shape in shapes.values())
        size = 0 if update is None else update.size
        encoding = _encoding(terms, label, size, count, integers=integers)
        return cls(encoding, integers, shared, shapes, ordered, update is not None)

    def encode(
        self, arrays: Arrays, numbers: Numbers, uniform: Callable[[int], NDArray[np.float64]]
    ) -> NDArray[Any]:
        """[length] residues of one reply."""
        scalars = [np.array([float(numbers[name]) for name in self.names])]
        scalars += [np.asarray(arrays[name], dtype=np.float64).reshape(-1) for name in self.shapes]
        flat = np.concatenate(scalars)
        if self.integers:
            return self.encoding.carry(arrays[UPDATE], flat)
        values = np.asarray(arrays[UPDATE], dtype=np.float64) if self.update else np.zeros(0)
        return self.encoding.encode(values, flat, uniform)

    def decode(self, total: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
        """Arrays and scalars of a sum of residues."""
        update, flat = self.encoding.decode_integers(total) if self.integers else self.encoding.decode(total)
        arrays: dict[str, NDArray[Any]] = dict(self.shared)
        if self.update:
            arrays[UPDATE] = update
        numbers = dict(zip(self.names, flat.tolist(), strict=False))
        start = len(self.names)
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            arrays[name] = flat[start : start + size].reshape(shape)
            start += size
        return arrays, numbers


def _encoding(terms: SecaggTerms, label: str, size: int, numbers: int, *, integers: bool) -> Encoding:
    if integers or size == 0:
        return Encoding(size, terms.bits, 1.0, numbers)
    if terms.clip_norm is None:
        raise AggregationRefused(
            "an update of real numbers came and the terms give no bound for it: set federation.clip_norm",
            Reason.RANGE,
        )
    seed = None
    if terms.rotate:
        seed = int.from_bytes(hashlib.sha256(b"rotation " + label.encode()).digest()[:8], "big")
    return encoding_for(
        size,
        terms.bits,
        users=terms.range_users,
        clip_norm=terms.clip_norm,
        numbers=numbers,
        rotation_seed=seed,
        noise_std=terms.noise_std,
    )


def label_of(kind: str, phase: str, round_: int) -> str:
    """The name of a sum within its run."""
    return f"{kind}/{phase}/{round_}"
