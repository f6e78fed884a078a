"""Searches files for a sum without noise: every window of their bytes, every array, every difference, every number.

A window or an array has found the sum when its correlation with it is almost 1, whatever the scale and the offset: so
integers that were scaled for secure aggregation are found like floats. A noised sum stays far below, which
`test_nothing_clean_stays` checks first. Out of scope: sums that are split over several files under masks.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

Floats = NDArray[np.float64]
#: Correlation from which on a window holds the sum.
FOUND = 0.98
TYPES = ("<f8", "<f4", "<i8", "<i4", "<i2")
_NUMBER = re.compile(rb"-?\d+\.\d+(?:[eE][-+]?\d+)?")


@dataclass
class Search:
    """Looks for some sums in files; the same bytes are looked at once.

    Attributes:
        sums: by name, [P] each.
        public: models that everyone has seen, whose differences to what is found are looked at, too.
        numbers: single values that follow from a sum without noise, by name.
    """

    sums: dict[str, Floats]
    public: list[Floats] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    _seen: dict[bytes, list[str]] = field(default_factory=dict)

    def in_folder(self, folder: Path) -> list[str]:
        """What was found, as "FILE: what"; empty: no file determines a sum."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        found = [f"{path.relative_to(folder)}: {what}" for path in files for what in self.in_bytes(path)]
        arrays = [values for path in files for values in _arrays(path.read_bytes())]
        return found + self.in_differences([*arrays, *self.public])

    def in_bytes(self, path: Path) -> list[str]:
        """In one file by itself."""
        data = path.read_bytes()
        if data not in self._seen:
            self._seen[data] = [*self._windows(data), *self._numbers(data)]
        return self._seen[data]

    def in_differences(self, arrays: list[Floats]) -> list[str]:
        """In one array less another."""
        found = []
        for one, other in itertools.combinations({a.tobytes(): a for a in arrays}.values(), 2):
            if one.shape == other.shape:
                found += [f"a difference holds {name}" for name in self._hits(one - other)]
        return found

    def _windows(self, data: bytes) -> Iterator[str]:
        for kind in TYPES:
            size = np.dtype(kind).itemsize
            for start in range(size):
                whole = data[start : start + (len(data) - start) // size * size]
                with np.errstate(all="ignore"):
                    values = np.frombuffer(whole, kind).astype(np.float64)
                    values = np.where(np.abs(values) < 1e11, values, 0.0)
                for name in self._hits(values):
                    yield f"{kind} at {start} mod {size} holds {name}"

    def _hits(self, values: Floats) -> list[str]:
        return [name for name, total in self.sums.items() if _correlation(values, total) > FOUND]

    def _numbers(self, data: bytes) -> Iterator[str]:
        """The norm or the total of a sum, or another number that follows from one, spelled out."""
        exact = self.numbers | {
            f"{what} of {name}": value
            for name, total in self.sums.items()
            for what, value in (("norm", np.linalg.norm(total)), ("total", total.sum()))
        }
        for text in set(_NUMBER.findall(data)):
            for what, value in exact.items():
                if abs(float(text) - value) < 1e-9 * abs(value):
                    yield what


def _correlation(values: Floats, total: Floats) -> float:
    """The largest Pearson correlation, either sign, of any window of values with the sum."""
    size = len(total)
    if len(values) < size:
        return 0.0
    wanted = (total - total.mean()) / np.linalg.norm(total - total.mean())
    products, ones = np.correlate(values, wanted, "valid"), np.ones(size)
    spread = np.convolve(values**2, ones, "valid") - np.convolve(values, ones, "valid") ** 2 / size
    usable = spread > 1e-9 * np.maximum(np.convolve(values**2, ones, "valid"), 1e-300)
    return float(np.max(np.abs(products[usable]) / np.sqrt(spread[usable]), initial=0.0))


def _arrays(data: bytes) -> list[Floats]:
    """Of a safetensors file, flat."""
    try:
        return [values.astype(np.float64).reshape(-1) for values in load(data).values()]
    except Exception:  # another file, or half of one
        return []


@dataclass
class Snapshots:
    """Copies of a run folder as a kill would leave it before and after every step on the disk.

    Attributes:
        folder: of the run.
        into: where copies go.
    """

    folder: Path
    into: Path
    copies: list[Path] = field(default_factory=list)
    _before: bytes = b""

    def take(self) -> None:
        """One more copy, unless the coordinator's files are as they were."""
        files = {p.name: p.read_bytes() for p in (self.folder / "coordinator").rglob("*") if p.is_file()}
        now = json.dumps({name: data.hex() for name, data in sorted(files.items())}).encode()
        if now != self._before:
            self._before = now
            self.copies.append(self.into / f"{len(self.copies):03d}")
            shutil.copytree(self.folder, self.copies[-1])

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, with a copy before and after it."""

        def taken(*args: Any, **options: Any) -> Any:
            self.take()
            try:
                return step(*args, **options)
            finally:
                self.take()

        return taken
